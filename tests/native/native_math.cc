// SPDX-License-Identifier: Apache-2.0
// The largest errors of native/math.h over many floats, in units in the last place of the exact value, one a line.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "native/math.h"

namespace {

constexpr double kSmallestNormal = 0x1p-126;

double units(float got, double exact) {
  const double size = std::fmax(std::fabs(exact), kSmallestNormal);
  return std::fabs(double(got) - exact) / std::ldexp(1.0, std::ilogb(size) - 23);
}

template <class Ours, class Exact>
void largest(const char* name, float lowest, float highest, Ours ours, Exact exact) {
  double most = 0;
  for (uint64_t bits = 0; bits < uint64_t(1) << 32; bits += 4099) {  // a prime: all exponents and signs, many mantissas
    const uint32_t word = uint32_t(bits);
    float x;
    std::memcpy(&x, &word, sizeof x);
    if (x >= lowest && x <= highest) most = std::fmax(most, units(ours(x), exact(double(x))));
  }
  std::printf("%s %.2f\n", name, most);
}

}  // namespace

int main() {
  using namespace bcq::native;
  const float inf = HUGE_VALF, nan = NAN;
  largest("exp", -86.6f, 88.72f, exponential, [](double x) { return std::exp(x); });
  largest("tanh", -100, 100, hyperbolic_tangent, [](double x) { return std::tanh(x); });
  largest("logistic", -86.6f, 100, logistic, [](double x) { return 1 / (1 + std::exp(-x)); });
  const bool ends = exponential(inf) == inf && exponential(200) == inf && exponential(-inf) < 1e-37f &&
                    hyperbolic_tangent(inf) == 1 && hyperbolic_tangent(-inf) == -1 && logistic(inf) == 1 &&
                    logistic(-inf) == 0 && exponential(0) == 1 && hyperbolic_tangent(0) == 0;
  const bool nans = std::isnan(exponential(nan)) && std::isnan(hyperbolic_tangent(nan)) && std::isnan(logistic(nan));
  std::printf("ends %d\nnans %d\n", ends, nans);
}
