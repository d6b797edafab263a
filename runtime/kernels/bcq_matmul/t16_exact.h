// SPDX-License-Identifier: Apache-2.0
// The float path of the T16 kernels, for rows of A that tables cannot hold: NaN, infinities, extreme magnitudes.
// Plain loops over the sixteen rows of a tile, which compilers vectorize for the ISA of the including file.
#pragma once

#include "core/half.h"
#include "kernels/bcq_matmul/t16_plan.h"

namespace bcq {
namespace {

inline float activation(const MatMulProblem& p, int64_t m, int64_t k) {
  const int64_t at = m * p.a_stride + k;
  return p.a_is_half ? half_to_float(static_cast<const uint16_t*>(p.a)[at]) : static_cast<const float*>(p.a)[at];
}

// weight[r] = sum_i alpha_i B_i + offset for input j of a chunk.
inline void decode_input(const MatMulProblem& p, const uint32_t* words, int64_t cell, int64_t j, float* weight) {
  for (int64_t r = 0; r < kTileRows; ++r) weight[r] = p.offset ? half_to_float(p.offset[cell * kTileRows + r]) : 0.0f;
  for (int64_t plane = 0; plane < p.bits; ++plane, words += kTileRows) {
    const uint16_t* alpha = t16_alpha(p, cell, plane);
    for (int64_t r = 0; r < kTileRows; ++r) {
      const float value = half_to_float(alpha[r]);
      weight[r] += (words[r] >> j & 1u) ? value : -value;
    }
  }
}

// y[r] = sum_k a[k] * weight[r, k] in double, so that no partial sum overflows before the result does.
inline void exact_tile(const MatMulProblem& p, const T16Plan& plan, int64_t m, int64_t tile, float* y) {
  double total[kTileRows] = {};
  for (int64_t k = 0; k < p.K; ++k) {
    const int64_t chunk = k / kWordBits;
    const int64_t cell = tile * plan.groups + chunk / plan.group_chunks;
    float weight[kTileRows];
    decode_input(p, p.codes + (tile * plan.chunks + chunk) * p.bits * kTileRows, cell, k % kWordBits, weight);
    const double a = double(activation(p, m, k));
    for (int64_t r = 0; r < kTileRows; ++r) total[r] += a * double(weight[r]);
  }
  for (int64_t r = 0; r < kTileRows; ++r) y[r] = float(total[r]);
}

}  // namespace
}  // namespace bcq
