// SPDX-License-Identifier: Apache-2.0
// Prepares activations for the look-up kernels of x86: block scales, block sums, and the sixteen signed sums of each quad.
// Needs AVX2, FMA and F16C; how a table entry is split into bytes is the business of each ISA file.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/bcq_matmul/lookup_plan.h"

namespace bcq {
namespace {

constexpr int64_t kBlockInputs = kBlockChunks * kWordBits;

// Rows whose largest magnitude lies outside take the float path. Inside, neither a sum of 128 activations nor s can
// overflow or lose bits to subnormals, and with K below 2^31 and nine factors below 2^16 no partial sum of the result
// overflows before the result does; a block of such a row below kNoScale is under 2^-33 of the row and counts as 0.
constexpr float kLargestRow = 0x1p76f;
constexpr float kSmallestRow = 0x1p-60f;
constexpr float kNoScale = 0x1p-100f;

inline __m256 load8(const MatMulProblem& p, int64_t m, int64_t k) {
  const int64_t at = m * p.a_stride + k;
  if (!p.a_is_half) return _mm256_loadu_ps(static_cast<const float*>(p.a) + at);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p.a) + at)));
}

// The last, incomplete eight inputs of a row, zeros behind.
inline __m256 load_tail(const MatMulProblem& p, int64_t m, int64_t k) {
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

inline __m256 magnitude(__m256 x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }

inline float largest(__m256 x) {
  __m128 v = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}

inline float total(__m256 x) {
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
}

// Magnitudes compare as integers, and so NaN and infinity are the largest of all.
inline bool row_out_of_range(const MatMulProblem& p, int64_t m) {
  __m256i most = _mm256_setzero_si256();
  for (int64_t k = 0; k < p.K; k += 8) {
    const __m256 x = k + 8 <= p.K ? load8(p, m, k) : load_tail(p, m, k);
    most = _mm256_max_epu32(most, _mm256_castps_si256(magnitude(x)));
  }
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  uint32_t bits = 0;
  for (uint32_t lane : lanes) bits = lane > bits ? lane : bits;
  float limit;
  std::memcpy(&limit, &bits, sizeof limit);
  return bits != 0 && !(limit >= kSmallestRow && limit <= kLargestRow);
}

// Copies a block, zeros behind K, and returns the largest sum of magnitudes of one of its quads.
inline float load_block(const MatMulProblem& p, int64_t m, const LookupBlock& block, float* x, float* sum) {
  const int64_t first = block.first_chunk * kWordBits;
  __m256 most = _mm256_setzero_ps();
  __m256 all = _mm256_setzero_ps();
  for (int64_t j = 0; j < block.chunks * kWordBits; j += 8) {
    const int64_t k = first + j;
    const __m256 v = k + 8 <= p.K ? load8(p, m, k) : k < p.K ? load_tail(p, m, k) : _mm256_setzero_ps();
    _mm256_store_ps(x + j, v);
    all = _mm256_add_ps(all, v);
    const __m256 pairs = _mm256_hadd_ps(magnitude(v), magnitude(v));
    most = _mm256_max_ps(most, _mm256_hadd_ps(pairs, pairs));
  }
  *sum = total(all);
  return largest(most);
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

// Prepares row m. write_chunk(const float* scaled, uint8_t* table) stores the eight quads of one chunk, whose entries
// have magnitudes up to `range`, and which takes plan.table_bytes.
template <typename WriteChunk>
inline void prepare_row(const MatMulProblem& p, const LookupPlan& plan, void* scratch, int64_t m, float range,
                        WriteChunk write_chunk) {
  const LookupRow row = lookup_row(plan, scratch, m);
  *row.out_of_range = row_out_of_range(p, m);
  if (*row.out_of_range) return;
  for_each_block(plan, [&](const LookupBlock& block) {
    alignas(32) float x[kBlockInputs];
    const float most = load_block(p, m, block, x, &row.sum[block.number]);
    const bool scaled = most >= kNoScale;
    row.scale[block.number] = scaled ? most / range : 0.0f;
    const __m256 inverse = _mm256_set1_ps(scaled ? range / most : 0.0f);
    for (int64_t j = 0; j < block.chunks * kWordBits; j += 8) {
      _mm256_store_ps(x + j, _mm256_mul_ps(_mm256_load_ps(x + j), inverse));
    }
    for (int64_t c = 0; c < block.chunks; ++c) {
      write_chunk(x + c * kWordBits, row.tables + size_t(block.first_chunk + c) * plan.table_bytes);
    }
  });
}

}  // namespace
}  // namespace bcq
