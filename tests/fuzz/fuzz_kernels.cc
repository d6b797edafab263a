// SPDX-License-Identifier: Apache-2.0
// Random problems through every kernel that this CPU can run, against the scalar kernel, the specification: the error
// stays within the bound of ops/README.md, a row alone has the bits that it has in a batch, any number of parts and a
// resident copy give the same bits, and NaN stays in its row. Buffers have their exact sizes, scratch is full of NaN.
#include <cmath>
#include <vector>

#include "bytes.h"
#include "core/bcq_core.h"
#include "core/half.h"
#include "fake_node.h"

namespace {

struct Problem {
  fake::Sizes sizes;
  fake::Node node;
  BcqMatMulProblem p;
};

fake::Sizes sizes_of(fuzz::Bytes& bytes) {
  fake::Sizes s;
  s.bits = bytes.between(1, 8);
  s.K = bytes.flag() ? bytes.between(1, 1000) : bytes.between(1, 70);
  s.N = bytes.between(1, 150);
  s.M = bytes.flag() ? bytes.between(1, 5) : bytes.between(1, 70);
  s.group_size = bytes.flag() ? s.K : 32 * bytes.between(1, 12);
  s.offset = bytes.flag();
  s.half = bytes.flag();
  return s;
}

// Scale and outliers of the activations, and perhaps one value that is not finite.
int64_t spoil(Problem& problem, fuzz::Bytes& bytes) {
  const fake::Sizes& s = problem.sizes;
  if (s.half) return -1;
  float* a = reinterpret_cast<float*>(problem.node.inputs[0]->data);
  const float scale = std::ldexp(1.0f, int(bytes.between(-40, 40)));
  for (int64_t i = 0; i < s.M * s.K; ++i) a[i] *= scale;
  a[bytes.between(0, s.M * s.K - 1)] *= float(bytes.between(0, 1000));
  if (!bytes.flag()) return -1;
  const int64_t at = bytes.between(0, s.M * s.K - 1);
  a[at] = bytes.flag() ? NAN : INFINITY;
  return at / s.K;
}

void bind(Problem& problem, int32_t level) {
  const fake::Sizes& s = problem.sizes;
  const auto& in = problem.node.inputs;
  BcqMatMulProblem& p = problem.p;
  p = {};
  p.M = s.M, p.K = s.K, p.N = s.N, p.group_size = s.group_size;
  p.bits = int32_t(s.bits), p.a_is_half = s.half, p.accuracy_level = level;
  p.a = in[0]->data, p.a_stride = s.K, p.y_stride = s.N;
  p.codes = reinterpret_cast<uint32_t*>(in[1]->data);
  p.alpha_1 = reinterpret_cast<uint16_t*>(in[2]->data);
  p.alpha_rest = s.bits == 1 ? nullptr : reinterpret_cast<uint16_t*>(in[3]->data);
  p.offset = s.offset ? reinterpret_cast<uint16_t*>(in[4]->data) : nullptr;
}

using Output = std::vector<uint8_t>;

struct Aligned {
  explicit Aligned(size_t bytes) : block(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64))) {
    std::memset(block, 0xff, bytes);
  }
  ~Aligned() { std::free(block); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  uint8_t* block;
};

// False when the kernel does not take the problem or the CPU lacks it.
bool run(BcqMatMulProblem p, const char* kernel, size_t parts, Output& y) {
  y.assign(size_t(p.M) * size_t(p.N) * (p.a_is_half ? 2 : 4), 0xee);
  p.y = y.data();
  const Aligned scratch(bcq_matmul_scratch_bytes(&p, kernel));
  return bcq_matmul(&p, kernel, scratch.block, parts, nullptr, nullptr) == nullptr;
}

float value(const Output& y, bool half, int64_t at) {
  if (half) return bcq::half_to_float(reinterpret_cast<const uint16_t*>(y.data())[at]);
  return reinterpret_cast<const float*>(y.data())[at];
}

// b of ops/README.md by the kernel's name, and the rounding of a float16 result.
double bound_of(const std::string& kernel, const fake::Sizes& s) {
  if (kernel.find("_t8") != std::string::npos) return 0.13;
  if (kernel.find("_t16") != std::string::npos) return 5e-4;
  return double(s.K + s.bits + 2) * 0x1p-24;
}

double sum_of_factors(const BcqMatMulProblem& p, int64_t row, int64_t group) {
  const int64_t cell = row / 16 * ((p.K - 1) / p.group_size + 1) + group, lane = row % 16;
  double sum = std::fabs(bcq::half_to_float(p.alpha_1[cell * 16 + lane]));
  for (int64_t i = 0; i < p.bits - 1; ++i) {
    sum += std::fabs(bcq::half_to_float(p.alpha_rest[(cell * (p.bits - 1) + i) * 16 + lane]));
  }
  return p.offset == nullptr ? sum : sum + std::fabs(bcq::half_to_float(p.offset[cell * 16 + lane]));
}

double magnitude(const BcqMatMulProblem& p, int64_t m, int64_t n) {
  double sum = 0, factors = 0;
  for (int64_t k = 0; k < p.K; ++k) {
    if (k % p.group_size == 0) factors = sum_of_factors(p, n, k / p.group_size);
    const float a = p.a_is_half ? bcq::half_to_float(static_cast<const uint16_t*>(p.a)[m * p.K + k])
                                : static_cast<const float*>(p.a)[m * p.K + k];
    sum += std::fabs(double(a)) * factors;
  }
  return sum;
}

void compare(const Problem& problem, const std::string& kernel, const Output& y, const Output& right, int64_t spoilt) {
  const fake::Sizes& s = problem.sizes;
  const int64_t step = s.M * s.N > 400 ? 7 : 1;  // magnitudes cost as much as a scalar product
  for (int64_t at = 0; at < s.M * s.N; at += step) {
    const double got = value(y, s.half, at), expected = value(right, s.half, at);
    const std::string where = kernel + ", row " + std::to_string(at / s.N) + ", output " + std::to_string(at % s.N);
    if (at / s.N == spoilt) {
      if (std::isfinite(got)) fuzz::found(where + ": NaN or infinity was lost");
      continue;
    }
    if (!std::isfinite(expected)) continue;
    // Float16 rounds to 11 bits; outputs below its normal range to multiples of 2^-24.
    const double rounding = s.half ? std::fabs(expected) * 0x1p-10 + 0x1p-23 : 1e-37;
    const double allowed = bound_of(kernel, s) * magnitude(problem.p, at / s.N, at % s.N) + rounding;
    if (!(std::fabs(got - expected) <= allowed)) {
      fuzz::found(where + ": got " + std::to_string(got) + ", expected " + std::to_string(expected) + " within " +
                  std::to_string(allowed));
    }
  }
}

void check_row_alone(const Problem& problem, const char* kernel, const Output& batch, int64_t row) {
  BcqMatMulProblem p = problem.p;
  const size_t bytes = p.a_is_half ? 2 : 4;
  p.M = 1;
  p.a = static_cast<const uint8_t*>(p.a) + size_t(row) * size_t(p.K) * bytes;
  Output alone;
  run(p, kernel, 1, alone);
  if (std::memcmp(alone.data(), batch.data() + size_t(row * p.N) * bytes, alone.size()) != 0) {
    fuzz::found(std::string(kernel) + ": a row alone differs from the row in a batch");
  }
}

void check_resident(const Problem& problem, const char* kernel, const Output& mapped) {
  BcqMatMulProblem p = problem.p;
  const size_t words = size_t((p.N + 15) / 16) * size_t((p.K + 31) / 32) * size_t(p.bits) * 16;
  const Aligned copy(words * 4);
  if (bcq_matmul_make_resident(&p, kernel, reinterpret_cast<uint32_t*>(copy.block)) != nullptr) {
    fuzz::found(std::string(kernel) + ": no resident copy");
  }
  p.codes = reinterpret_cast<uint32_t*>(copy.block);
  p.resident = 1;
  Output y;
  run(p, kernel, 3, y);
  if (y != mapped) fuzz::found(std::string(kernel) + ": a resident copy changes the result");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Bytes bytes(data, size);
  Problem problem;
  problem.sizes = sizes_of(bytes);
  problem.node = fake::healthy(problem.sizes, bytes.number<uint16_t>());
  const int64_t spoilt = spoil(problem, bytes);
  const int64_t row = bytes.between(0, problem.sizes.M - 1);
  const size_t parts = size_t(bytes.between(0, 9));
  Output right;
  bind(problem, 0);
  run(problem.p, "scalar", 1, right);
  for (int32_t level = 0; level < 5; ++level) {
    bind(problem, level);
    for (int32_t i = 0; i < bcq_kernel_count("BcqMatMul"); ++i) {
      const char* kernel = bcq_kernel_name("BcqMatMul", i);
      Output y, split;
      if (!run(problem.p, kernel, 1, y)) continue;
      compare(problem, kernel, y, right, spoilt);
      run(problem.p, kernel, parts, split);
      if (split != y) fuzz::found(std::string(kernel) + ": the number of parts changes the result");
      check_row_alone(problem, kernel, y, row);
      check_resident(problem, kernel, y);
    }
  }
  return 0;
}
