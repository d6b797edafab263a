// SPDX-License-Identifier: Apache-2.0
// Prepares activations for the look-up kernels of x86: block scales, block sums, the sixteen signed sums of each quad.
// Needs AVX2, FMA and F16C; how a table entry is split into bytes is the business of each ISA file.
#pragma once

#include "core/half.h"
#include "kernels/bcq_matmul/lookup_plan.h"
#include "kernels/bcq_matmul/x86_rows.h"

namespace bcq {
namespace {

// Rows are brought into range (row_range.h), so that neither a sum of 128 activations nor s can overflow or lose bits
// to subnormals. In a block below this, every activation is under 2^-40 of the row's largest one, which is at least
// 2^-60, and counts as zero. ops/README.md allows that: other blocks may have factors so small that it shows.
constexpr float kNoScale = 0x1p-100f;

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

// In every element, the sum of its quad: (x0 + x1) + (x2 + x3).
inline __m256 quad_sums(__m256 x) {
  const __m256 pairs = _mm256_add_ps(x, _mm256_permute_ps(x, 0xb1));
  return _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0x4e));
}

inline __m256 eight_scaled(const MatMulProblem& p, int64_t m, int64_t k, float in) {
  return _mm256_mul_ps(eight_inputs(p, m, k), _mm256_set1_ps(in));
}

// The sum of a block's inputs times `in`, and the largest sum of magnitudes of one of its quads.
struct BlockSize {
  float sum;
  float most;
};

inline BlockSize size_of_block(const MatMulProblem& p, int64_t m, const LookupBlock& block, float in) {
  const int64_t first = block.first_chunk * kWordBits;
  __m256 most = _mm256_setzero_ps();
  __m256 all = _mm256_setzero_ps();
  for (int64_t k = first; k < first + block.chunks * kWordBits; k += 8) {
    const __m256 v = eight_scaled(p, m, k, in);
    all = _mm256_add_ps(all, v);
    most = _mm256_max_ps(most, quad_sums(magnitude(v)));
  }
  return {total(all), largest(most)};
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
inline void prepare_row(const MatMulProblem& problem, const LookupPlan& plan, void* scratch, int64_t m, float range,
                        WriteChunk write_chunk) {
  const MatMulProblem p = problem;  // stores into scratch cannot change a copy: its fields stay in registers
  const LookupRow row = lookup_row(plan, scratch, m);
  const RowRange row_range = range_of_row(p, m);
  *row.out = row_range.finite ? row_range.out : bits_to_float(kNanBits);
  for_each_block(plan, [&](const LookupBlock& block) {
    const BlockSize size = size_of_block(p, m, block, row_range.in);
    row.sum[block.number] = size.sum;
    row.scale[block.number] = size.most;
  });
  // A pass of its own, so that the sums and divisions of different blocks overlap.
  for_each_block(plan, [&](const LookupBlock& block) {
    const float most = row.scale[block.number];
    const bool scaled = most >= kNoScale;
    row.scale[block.number] = scaled ? most / range : 0.0f;
    const __m256 inverse = _mm256_set1_ps(scaled ? range / most : 0.0f);
    for (int64_t c = block.first_chunk; c < block.first_chunk + block.chunks; ++c) {
      alignas(32) float x[kWordBits];
      for (int64_t j = 0; j < kWordBits; j += 8) {
        _mm256_store_ps(x + j, _mm256_mul_ps(eight_scaled(p, m, c * kWordBits + j, row_range.in), inverse));
      }
      write_chunk(x, row.tables + size_t(c) * plan.table_bytes);
    }
  });
}

}  // namespace
}  // namespace bcq
