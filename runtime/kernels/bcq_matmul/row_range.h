// SPDX-License-Identifier: Apache-2.0
// Keeps float32 sums of extreme rows of A in range: such a row is multiplied by a power of two, its results divided.
#pragma once

#include <cstdint>

namespace bcq {
namespace {

// With K below 2^31 and weights below 9 * 2^16, no partial sum of a row of A up to 2^76 reaches 2^128. Of a row from
// 2^-60 on, what a rounding loses to subnormals (steps of 2^-149) is under 2^-64 of the row's largest activation times
// any alpha but zero. That may not be its own alpha: ops/README.md grants these steps, 2^-85 in a row above 2^76.
constexpr uint32_t kLargestRowBits = (127u + 76u) << 23;
constexpr uint32_t kSmallestRowBits = (127u - 60u) << 23;
constexpr uint32_t kInfinityBits = 255u << 23;

struct RowRange {
  float in;     // multiplies the row; a power of two, so that nothing is rounded
  float out;    // multiplies its results: overflow and underflow happen here or not at all
  bool finite;  // a row with NaN or an infinity is left as it is
};

// From the largest |a| of a row as an integer: magnitudes compare as integers, infinity and NaN above all others.
inline RowRange row_range(uint32_t largest_bits) {
  if (largest_bits >= kInfinityBits) return {1.0f, 1.0f, false};
  if (largest_bits > kLargestRowBits) return {0x1p-64f, 0x1p64f, true};
  if (largest_bits != 0 && largest_bits < kSmallestRowBits) return {0x1p64f, 0x1p-64f, true};
  return {1.0f, 1.0f, true};
}

}  // namespace
}  // namespace bcq
