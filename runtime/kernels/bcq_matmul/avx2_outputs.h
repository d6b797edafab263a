// SPDX-License-Identifier: Apache-2.0
// Sixteen outputs of one row of A and one tile, and what a block adds to them: y = fma(alpha, s * float(sum), y).
#pragma once

#include <immintrin.h>

#include "kernels/bcq_matmul/avx2_sums.h"

namespace bcq {
namespace {

// Sixteen floats: rows 0-7 and 8-15 of a tile.
struct Sixteen {
  __m256 rows[2];
};

inline Sixteen load(const float* y) { return {{_mm256_load_ps(y), _mm256_load_ps(y + 8)}}; }

inline void store(float* y, const Sixteen& outputs) {
  _mm256_store_ps(y, outputs.rows[0]);
  _mm256_store_ps(y + 8, outputs.rows[1]);
}

inline __m256 eight_halves(const uint16_t* values) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

inline Sixteen sixteen_halves(const uint16_t* values) { return {{eight_halves(values), eight_halves(values + 8)}}; }

// y += alpha * (scale * sum)
inline void add_scaled(Sixteen& y, const Sixteen& alpha, float scale, const BlockSums& sums) {
  const __m256 s = _mm256_set1_ps(scale);
  for (int i = 0; i < 2; ++i) {
    y.rows[i] = _mm256_fmadd_ps(alpha.rows[i], _mm256_mul_ps(s, _mm256_cvtepi32_ps(sums.rows[i])), y.rows[i]);
  }
}

// y += offset * (sum of the block's activations)
inline void add_offset(Sixteen& y, const Sixteen& offset, float sum) {
  for (int i = 0; i < 2; ++i) y.rows[i] = _mm256_fmadd_ps(offset.rows[i], _mm256_set1_ps(sum), y.rows[i]);
}

constexpr float kOver65536 = 0x1p-16f;  // sums_of_8_bits are too large by it; a power of two, so nothing is rounded

}  // namespace
}  // namespace bcq
