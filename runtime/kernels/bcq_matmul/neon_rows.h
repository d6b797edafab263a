// SPDX-License-Identifier: Apache-2.0
// How the kernels of 64-bit Arm read rows of A, float16 or float32, and write rows of Y; x86_rows.h has the same names.
// Needs nothing but the instructions that every such CPU has.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "core/half.h"
#include "kernels/bcq_matmul/kernel.h"
#include "kernels/bcq_matmul/row_range.h"

namespace bcq {
namespace {

// ---- eight floats ----

struct Eight {
  float32x4_t front;
  float32x4_t back;
};

inline float32x4_t four_halves(const uint16_t* values) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(values))); }

inline Eight eight_zeros() { return {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}; }
inline Eight eight_floats(const float* x) { return {vld1q_f32(x), vld1q_f32(x + 4)}; }
inline Eight eight_halves(const uint16_t* x) { return {four_halves(x), four_halves(x + 4)}; }

inline void store_eight(float* to, const Eight& x) {
  vst1q_f32(to, x.front);
  vst1q_f32(to + 4, x.back);
}

inline Eight times(const Eight& x, float factor) {
  const float32x4_t f = vdupq_n_f32(factor);
  return {vmulq_f32(x.front, f), vmulq_f32(x.back, f)};
}

inline Eight plus(const Eight& a, const Eight& b) { return {vaddq_f32(a.front, b.front), vaddq_f32(a.back, b.back)}; }
inline Eight larger(const Eight& a, const Eight& b) { return {vmaxq_f32(a.front, b.front), vmaxq_f32(a.back, b.back)}; }

// For each quad, in some elements, the sum of its magnitudes: (|x0| + |x1|) + (|x2| + |x3|).
inline Eight quad_magnitudes(const Eight& x) {
  const float32x4_t pairs = vpaddq_f32(vabsq_f32(x.front), vabsq_f32(x.back));
  const float32x4_t quads = vpaddq_f32(pairs, pairs);
  return {quads, quads};
}

inline float largest(const Eight& x) { return vmaxvq_f32(vmaxq_f32(x.front, x.back)); }

inline float total(const Eight& x) {
  const float32x4_t four = vaddq_f32(x.front, x.back);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

// ---- rows of A ----

inline Eight load8(const MatMulProblem& p, int64_t m, int64_t k) {
  const int64_t at = m * p.a_stride + k;
  return p.a_is_half ? eight_halves(static_cast<const uint16_t*>(p.a) + at)
                     : eight_floats(static_cast<const float*>(p.a) + at);
}

// The last, incomplete eight inputs of a row, zeros behind.
inline Eight load_tail(const MatMulProblem& p, int64_t m, int64_t k) {
  const int64_t at = m * p.a_stride + k;
  const size_t count = size_t(p.K - k);
  alignas(16) float values[8] = {};
  if (!p.a_is_half) {
    std::memcpy(values, static_cast<const float*>(p.a) + at, count * sizeof(float));
    return eight_floats(values);
  }
  alignas(16) uint16_t halves[8] = {};
  std::memcpy(halves, static_cast<const uint16_t*>(p.a) + at, count * sizeof(uint16_t));
  return eight_halves(halves);
}

// Inputs k .. k + 7 of row m, zeros from K on.
inline Eight eight_inputs(const MatMulProblem& p, int64_t m, int64_t k) {
  return k + 8 <= p.K ? load8(p, m, k) : k < p.K ? load_tail(p, m, k) : eight_zeros();
}

// How row m is brought into range.
inline RowRange range_of_row(const MatMulProblem& p, int64_t m) {
  uint32x4_t most = vdupq_n_u32(0);
  for (int64_t k = 0; k < p.K; k += 8) {
    const Eight x = eight_inputs(p, m, k);
    most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(x.front)));
    most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(x.back)));
  }
  return row_range(vmaxvq_u32(most));
}

// ---- rows of Y ----

// Four values of y times out, any NaN as the one of half.h.
inline float32x4_t four_outputs(const float* y, float32x4_t out) {
  const float32x4_t x = vmulq_f32(vld1q_f32(y), out);
  return vbslq_f32(vceqq_f32(x, x), x, vreinterpretq_f32_u32(vdupq_n_u32(kNanBits)));
}

// Writes the outputs of one row of A and one tile, y times out; y holds sixteen values, and only those below N are
// stored.
inline void store_tile(const MatMulProblem& p, int64_t m, int64_t tile, const float* y, float out) {
  const size_t count = size_t(p.N - tile * kTileRows < kTileRows ? p.N - tile * kTileRows : kTileRows);
  const int64_t at = m * p.y_stride + tile * kTileRows;
  alignas(64) float values[kTileRows];
  alignas(64) uint16_t halves[kTileRows];
  for (int64_t r = 0; r < kTileRows; r += 4) {
    const float32x4_t four = four_outputs(y + r, vdupq_n_f32(out));
    vst1q_f32(values + r, four);
    if (p.a_is_half) vst1_u16(halves + r, vreinterpret_u16_f16(vcvt_f16_f32(four)));
  }
  if (p.a_is_half) {
    std::memcpy(static_cast<uint16_t*>(p.y) + at, halves, count * sizeof(uint16_t));
  } else {
    std::memcpy(static_cast<float*>(p.y) + at, values, count * sizeof(float));
  }
}

}  // namespace
}  // namespace bcq
