// SPDX-License-Identifier: Apache-2.0
// exp, tanh and the logistic function for loops that a compiler makes vectors of: no branch, no table, no call. Within
// 2 units in the last place (exp, tanh) and 3 (logistic) of the exact value; a test holds them. The same bits on every CPU.
#pragma once

#include <cstdint>
#include <cstring>

namespace bcq::native {

// 2^n for n in [-126, 127].
static inline float power_of_two(int32_t n) {
  const uint32_t bits = uint32_t(n + 127) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2; the polynomial has the least relative error there, 3e-9. Below 2^-125 the
// result stays there, so that no step of it is subnormal.
static inline float exponential(float x) {
  constexpr float kLowest = -86.6f, kHighest = 88.8f;
  constexpr float kPerOctave = 1.44269504f, kOctaveHigh = 0.693359375f, kOctaveLow = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is in the low bits
  const float above = x < kLowest ? kLowest : x, limited = above > kHighest ? kHighest : above;
  const float shifted = limited * kPerOctave + kRound;
  const float n = shifted - kRound, r = (limited - n * kOctaveHigh) - n * kOctaveLow;
  float p = 1.38144661e-3f;
  p = p * r + 8.36878084e-3f;
  p = p * r + 4.16683927e-2f;
  p = p * r + 0.166665196f;
  p = p * r + 0.49999994f;
  const float y = (p * (r * r) + r) + 1.0f;
  int32_t bits, rounded;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&rounded, &kRound, sizeof rounded);
  // In two factors, because 2^128 is none; of a NaN any factors will do, and these stay in range.
  const int32_t whole = (bits - rounded) & 0xff, octaves = whole > 128 ? whole - 256 : whole, half = octaves >> 1;
  return y * power_of_two(half) * power_of_two(octaves - half);
}

static inline float hyperbolic_tangent(float x) {
  constexpr float kSmall = 0.625f;  // below, 1 - 2 / (exp(2x) + 1) would lose digits
  const float square = x * x;
  float p = -5.70498407e-3f;
  p = p * square + 2.06390843e-2f;
  p = p * square - 5.37397154e-2f;
  p = p * square + 0.133314416f;
  p = p * square - 0.333332807f;
  const float small = x + x * square * p;
  const float size = x < 0 ? -x : x, large = 1.0f - 2.0f / (exponential(2.0f * size) + 1.0f);
  const float signed_large = x < 0 ? -large : large;
  return size < kSmall ? small : signed_large;
}

static inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace bcq::native
