// SPDX-License-Identifier: Apache-2.0
// How the x86 kernels read rows of A, float16 or float32, and write rows of Y; neon_rows.h has the same names.
// Needs AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "core/half.h"
#include "kernels/bcq_matmul/kernel.h"
#include "kernels/bcq_matmul/row_range.h"

namespace bcq {
namespace {

// ---- eight floats ----

using Eight = __m256;

inline Eight eight_zeros() { return _mm256_setzero_ps(); }
inline void store_eight(float* to, Eight x) { _mm256_storeu_ps(to, x); }
inline Eight times(Eight x, float factor) { return _mm256_mul_ps(x, _mm256_set1_ps(factor)); }
inline Eight plus(Eight a, Eight b) { return _mm256_add_ps(a, b); }
inline Eight larger(Eight a, Eight b) { return _mm256_max_ps(a, b); }
inline Eight magnitude(Eight x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }

// In every element, the sum of the magnitudes of its quad: (|x0| + |x1|) + (|x2| + |x3|).
inline Eight quad_magnitudes(Eight x) {
  const __m256 sizes = magnitude(x);
  const __m256 pairs = _mm256_add_ps(sizes, _mm256_permute_ps(sizes, 0xb1));
  return _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0x4e));
}

inline float largest(Eight x) {
  __m128 v = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}

inline float total(Eight x) {
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
}

// Entries n = 0..15 of one quad: bit j of n is the sign of x[j], 1 for plus. Already scaled; rounds to nearest.
inline __m256i quad_entries(const float* x) {
  const __m256 minus = _mm256_set1_ps(-0.0f);
  const __m256 sign0 = _mm256_castsi256_ps(_mm256_setr_epi32(INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0));
  const __m256 sign1 = _mm256_castsi256_ps(_mm256_setr_epi32(INT32_MIN, INT32_MIN, 0, 0, INT32_MIN, INT32_MIN, 0, 0));
  const __m256 sign3 = _mm256_blend_ps(minus, _mm256_setzero_ps(), 0xf0);
  const __m256 x01 = _mm256_add_ps(_mm256_xor_ps(_mm256_broadcast_ss(x), sign0),
                                   _mm256_xor_ps(_mm256_broadcast_ss(x + 1), sign1));
  const __m256 x013 = _mm256_add_ps(x01, _mm256_xor_ps(_mm256_broadcast_ss(x + 3), sign3));
  const __m256 x2 = _mm256_broadcast_ss(x + 2);
  // Lanes hold n = 0..3 | 8..11 and 4..7 | 12..15: packing them lane by lane gives the natural order.
  return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_sub_ps(x013, x2)), _mm256_cvtps_epi32(_mm256_add_ps(x013, x2)));
}

// ---- rows of A ----

inline Eight load8(const MatMulProblem& p, int64_t m, int64_t k) {
  const int64_t at = m * p.a_stride + k;
  if (!p.a_is_half) return _mm256_loadu_ps(static_cast<const float*>(p.a) + at);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p.a) + at)));
}

// The last, incomplete eight inputs of a row, zeros behind.
inline Eight load_tail(const MatMulProblem& p, int64_t m, int64_t k) {
  const int64_t at = m * p.a_stride + k;
  const size_t count = size_t(p.K - k);
  alignas(32) float values[8] = {};
  if (!p.a_is_half) {
    std::memcpy(values, static_cast<const float*>(p.a) + at, count * sizeof(float));
    return _mm256_load_ps(values);
  }
  std::memcpy(values, static_cast<const uint16_t*>(p.a) + at, count * sizeof(uint16_t));
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(values)));
}

// Inputs k .. k + 7 of row m, zeros from K on.
inline Eight eight_inputs(const MatMulProblem& p, int64_t m, int64_t k) {
  return k + 8 <= p.K ? load8(p, m, k) : k < p.K ? load_tail(p, m, k) : eight_zeros();
}

// How row m is brought into range.
inline RowRange range_of_row(const MatMulProblem& p, int64_t m) {
  __m256i most = _mm256_setzero_si256();
  for (int64_t k = 0; k < p.K; k += 8) {
    most = _mm256_max_epu32(most, _mm256_castps_si256(magnitude(eight_inputs(p, m, k))));
  }
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  uint32_t bits = 0;
  for (uint32_t lane : lanes) bits = lane > bits ? lane : bits;
  return row_range(bits);
}

// ---- rows of Y ----

// Eight values of y times out, any NaN as the one of half.h.
inline Eight eight_outputs(const float* y, float out) {
  const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(y), _mm256_set1_ps(out));
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(int(kNanBits)));
  return _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

// Writes the outputs of one row of A and one tile, y times out; y holds sixteen values, and only those below N are
// stored.
inline void store_tile(const MatMulProblem& p, int64_t m, int64_t tile, const float* y, float out) {
  const size_t count = size_t(p.N - tile * kTileRows < kTileRows ? p.N - tile * kTileRows : kTileRows);
  const int64_t at = m * p.y_stride + tile * kTileRows;
  const __m256 first = eight_outputs(y, out);
  const __m256 second = eight_outputs(y + 8, out);
  if (!p.a_is_half) {
    alignas(32) float values[kTileRows];
    _mm256_store_ps(values, first);
    _mm256_store_ps(values + 8, second);
    std::memcpy(static_cast<float*>(p.y) + at, values, count * sizeof(float));
    return;
  }
  alignas(16) uint16_t halves[kTileRows];
  _mm_store_si128(reinterpret_cast<__m128i*>(halves), _mm256_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT));
  _mm_store_si128(reinterpret_cast<__m128i*>(halves + 8), _mm256_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT));
  std::memcpy(static_cast<uint16_t*>(p.y) + at, halves, count * sizeof(uint16_t));
}

}  // namespace
}  // namespace bcq
