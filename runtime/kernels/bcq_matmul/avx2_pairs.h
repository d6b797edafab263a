// SPDX-License-Identifier: Apache-2.0
// Pairs of tiles for AVX2: their indexes, the trees of their look-ups, and their outputs, one tile per 128-bit lane.
#pragma once

#include "kernels/bcq_matmul/avx2_sums.h"

namespace bcq {
namespace {

struct TilePair {
  int64_t a;
  int64_t b;
};

// The indexes of one line of both tiles.
struct PairIndexes {
  LineNibbles a;
  LineNibbles b;
};

template <typename Order>
inline LineNibbles nibbles_of(const uint32_t* line) {
  const typename Order::Line bytes = Order::hold(line);
  return {Order::x(bytes), Order::y(bytes)};
}

template <typename Order>
inline PairIndexes pair_indexes(const uint32_t* a, const uint32_t* b, int64_t ahead) {
  _mm_prefetch(reinterpret_cast<const char*>(a + ahead), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(b + ahead), _MM_HINT_T0);
  return {nibbles_of<Order>(a), nibbles_of<Order>(b)};
}

// Tables of a chunk lie table_bytes apart.
template <size_t table_bytes>
struct PairStreams {
  const PairIndexes* indexes;
  const uint8_t* tables;
  [[gnu::always_inline]] Two averages(int chunk, Two& sums) const {
    const PairIndexes& index = indexes[chunk];
    const uint8_t* at = tables + size_t(chunk) * table_bytes;
    const Two x = look_up_two(at, index.a.x, index.b.x, sums);
    return average(x, look_up_two(at + 64, index.a.y, index.b.y, sums));
  }
};

// Sums of a block's entries: lane 0 is tile A, lane 1 tile B.
struct PairT16 {
  static constexpr Entries kEntries = kT16;
  static constexpr int kTrees = 2;  // of low and of high bytes
};

struct PairT8 {
  static constexpr Entries kEntries = kT8;
  static constexpr int kTrees = 1;
};

// Four vectors of tile A | tile B: the rows 0-3, 8-11, 4-7, 12-15 of each.
struct PairFloats {
  __m256 rows[4];
};

inline PairFloats pair_halves(const uint16_t* a, const uint16_t* b) {
  const __m128i a0 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
  const __m128i a1 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + 8));
  const __m128i b0 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
  const __m128i b1 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 8));
  return {{_mm256_cvtph_ps(_mm_unpacklo_epi64(a0, b0)), _mm256_cvtph_ps(_mm_unpacklo_epi64(a1, b1)),
           _mm256_cvtph_ps(_mm_unpackhi_epi64(a0, b0)), _mm256_cvtph_ps(_mm_unpackhi_epi64(a1, b1))}};
}

// Rows 0-15 of tile A, then of tile B.
inline void in_natural_order(const PairFloats& y, float* to) {
  _mm256_store_ps(to, _mm256_permute2f128_ps(y.rows[0], y.rows[2], 0x20));
  _mm256_store_ps(to + 8, _mm256_permute2f128_ps(y.rows[1], y.rows[3], 0x20));
  _mm256_store_ps(to + 16, _mm256_permute2f128_ps(y.rows[0], y.rows[2], 0x31));
  _mm256_store_ps(to + 24, _mm256_permute2f128_ps(y.rows[1], y.rows[3], 0x31));
}

// y + alpha * (scale * sum)
inline __m256 fused(__m256 y, __m256 alpha, __m256 scale, __m256i sum) {
  return _mm256_fmadd_ps(alpha, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sum)), y);
}

inline PairFloats add_scaled(PairT16, const PairFloats& y, const PairFloats& alpha, float scale,
                             const Merged& low_bytes, const Merged& high_bytes, int64_t chunks) {
  const __m256 s = _mm256_set1_ps(scale);
  const __m256i bytes = _mm256_set1_epi32(0x01000001);  // low + 256 * high
  const WordSums low = word_sums(low_bytes);
  const WordSums high = without_bias(word_sums(high_bytes), chunks);
  return {{fused(y.rows[0], alpha.rows[0], s, _mm256_madd_epi16(_mm256_unpacklo_epi16(low.front, high.front), bytes)),
           fused(y.rows[1], alpha.rows[1], s, _mm256_madd_epi16(_mm256_unpackhi_epi16(low.front, high.front), bytes)),
           fused(y.rows[2], alpha.rows[2], s, _mm256_madd_epi16(_mm256_unpacklo_epi16(low.back, high.back), bytes)),
           fused(y.rows[3], alpha.rows[3], s, _mm256_madd_epi16(_mm256_unpackhi_epi16(low.back, high.back), bytes))}};
}

inline PairFloats add_scaled(PairT8, const PairFloats& y, const PairFloats& alpha, float scale, const Merged& bytes,
                             const Merged&, int64_t chunks) {
  // A 16-bit sum in the upper half of 32 bits is 65536 times too large: a power of two, so that nothing is rounded.
  const __m256 s = _mm256_set1_ps(scale * 0x1p-16f);
  const __m256i zero = _mm256_setzero_si256();
  const WordSums sums = without_bias(word_sums(bytes), chunks);
  return {{fused(y.rows[0], alpha.rows[0], s, _mm256_unpacklo_epi16(zero, sums.front)),
           fused(y.rows[1], alpha.rows[1], s, _mm256_unpackhi_epi16(zero, sums.front)),
           fused(y.rows[2], alpha.rows[2], s, _mm256_unpacklo_epi16(zero, sums.back)),
           fused(y.rows[3], alpha.rows[3], s, _mm256_unpackhi_epi16(zero, sums.back))}};
}

}  // namespace
}  // namespace bcq
