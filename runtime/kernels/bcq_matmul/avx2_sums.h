// SPDX-License-Identifier: Apache-2.0
// Look-ups for AVX2: from the indexes of a block and its tables to the exact sums of table entries of sixteen rows.
//
// Bytes are summed without widening: a tree of vpavgb gives about sum / 32 (each of its 5 levels rounds up by at most
// 1/2, so 32 * average - sum lies in 0 .. 80), vpaddb gives the sum modulo 256, and both together the exact sum:
// sum = 32 * average - ((32 * average - sum) mod 256). Two cheap instructions a look-up, and none on a shuffle port.
//
// Look-ups come in two streams, A and B, whose trees are merged into one vector: the low and the high bytes of 16-bit
// entries (T16), or two planes or tiles that share their tables, or the halves of a plane (T8).
#pragma once

#include <immintrin.h>

#include "kernels/bcq_matmul/avx2_lines.h"

namespace bcq {
namespace {

// The tables of one chunk: four vectors of bytes for the X even, X odd, Y even and Y odd quads (128 bytes), for T16
// first of low bytes and then of high ones. Offset of the sixteen bytes of a quad:
inline int table_offset(int quad) { return 64 * (quad >> 2) + 32 * (quad & 1) + 16 * (quad >> 1 & 1); }
constexpr int kVectorTables = 128;

// A value of stream A and one of stream B.
struct Two {
  __m256i a;
  __m256i b;
};

// Compilers may not load tables once for all planes: 32 vectors do not fit into registers and would go to the stack.
inline void keep_in_memory(const uint8_t*& tables) { asm("" : "+r"(tables)); }
// Nor may they postpone sums, which would keep every look-up alive.
inline void add_now(__m256i& sum, __m256i bytes) {
  sum = _mm256_add_epi8(sum, bytes);
  asm("" : "+x"(sum));
}

inline __m256i look_up(const uint8_t* table, __m256i index) {
  return _mm256_shuffle_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(table)), index);
}

// Two look-ups: adds their bytes to sum and returns their average.
inline __m256i look_up_pair(const uint8_t* table, const Nibbles& index, __m256i& sum) {
  const __m256i even = look_up(table, index.even);
  const __m256i odd = look_up(table + 32, index.odd);
  add_now(sum, _mm256_add_epi8(even, odd));
  return _mm256_avg_epu8(even, odd);
}

inline Two average(const Two& first, const Two& second) {
  return {_mm256_avg_epu8(first.a, second.a), _mm256_avg_epu8(first.b, second.b)};
}

// One index stream and two tables. For T16 of one row of A, both are parts of the same chunk.
template <typename Source>
struct OneLineTwoTables {
  Source source;
  const uint8_t* a;
  const uint8_t* b;
  int64_t stride;  // from a chunk's tables to the next one's

  [[gnu::always_inline]] Two averages(int chunk, Two& sums) const {
    auto line = source.line(chunk);
    const int64_t at = chunk * stride;
    const Two x = both(Source::x(line), at, sums);
    return average(x, both(Source::y(line), at + 64, sums));
  }

 private:
  Two both(const Nibbles& index, int64_t at, Two& sums) const {
    const __m256i first = look_up_pair(a + at, index, sums.a);
    return {first, look_up_pair(b + at, index, sums.b)};
  }
};

// One table vector, read with the indexes of two lines.
inline __m256i look_up(__m256i table, const __m256i& index) { return _mm256_shuffle_epi8(table, index); }

inline Two look_up_two(const uint8_t* even, const Nibbles& a, const Nibbles& b, Two& sums) {
  const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(even));
  const Two evens = {look_up(first, a.even), look_up(first, b.even)};
  const __m256i second = _mm256_load_si256(reinterpret_cast<const __m256i*>(even + 32));
  const Two odds = {look_up(second, a.odd), look_up(second, b.odd)};
  add_now(sums.a, _mm256_add_epi8(evens.a, odds.a));
  add_now(sums.b, _mm256_add_epi8(evens.b, odds.b));
  return average(evens, odds);
}

// Two index streams and one table: two planes of T8. A table is loaded once for both.
template <typename Source>
struct TwoLinesOneTable {
  Source source_a;
  Source source_b;
  const uint8_t* table;
  int64_t stride;

  [[gnu::always_inline]] Two averages(int chunk, Two& sums) const {
    const uint8_t* at = table + chunk * stride;
    auto a = source_a.line(chunk);
    auto b = source_b.line(chunk);
    const Two x = look_up_two(at, Source::x(a), Source::x(b), sums);
    return average(x, look_up_two(at + 64, Source::y(a), Source::y(b), sums));
  }
};

// One plane of T8, whose chunks are dealt to both streams: the first half, rounded up, and the rest.
template <typename Source, int chunks>
struct Halves {
  static constexpr int kFirst = (chunks + 1) / 2;
  Source source;
  const uint8_t* table;
  int64_t stride;

  [[gnu::always_inline]] Two averages(int chunk, Two& sums) const {
    const __m256i a = one(chunk, sums.a);
    return {a, kFirst + chunk < chunks ? one(kFirst + chunk, sums.b) : _mm256_setzero_si256()};
  }

 private:
  [[gnu::always_inline]] __m256i one(int chunk, __m256i& sum) const {
    const uint8_t* at = table + chunk * stride;
    auto line = source.line(chunk);
    const __m256i x = look_up_pair(at, Source::x(line), sum);
    return _mm256_avg_epu8(x, look_up_pair(at + 64, Source::y(line), sum));
  }
};

// [a's lane 0 | b's lane 0] and [a's lane 1 | b's lane 1], the latter with its lanes exchanged: what is combined next
// lane by lane is then a's two lanes and b's two lanes. A blend is cheaper than a second permutation.
inline __m256i outer_lanes(const Two& two) { return _mm256_blend_epi32(two.a, two.b, 0xf0); }
inline __m256i inner_lanes(const Two& two) { return _mm256_permute2x128_si256(two.a, two.b, 0x21); }

// The sums of both streams in one vector: lane 0 of A, lane 1 of B.
struct Merged {
  __m256i mean;    // about the sum of all bytes / 32
  __m256i modulo;  // that sum modulo 256
};

inline Merged merge(const Two& averages, const Two& sums) {
  return {_mm256_avg_epu8(outer_lanes(averages), inner_lanes(averages)),
          _mm256_add_epi8(outer_lanes(sums), inner_lanes(sums))};
}

template <int chunks, typename Streams>
[[gnu::always_inline]] inline Merged look_up_block(const Streams& streams) {
  const __m256i zero = _mm256_setzero_si256();
  const Two none = {zero, zero};
  Two sums = none;
  Two front = streams.averages(0, sums);
  front = average(front, chunks > 1 ? streams.averages(1, sums) : none);
  asm("" : "+x"(front.a), "+x"(front.b));  // nothing of these chunks may wait for the next ones
  Two back = none;
  if (chunks > 2) {
    back = streams.averages(2, sums);
    back = average(back, chunks > 3 ? streams.averages(3, sums) : none);
  }
  return merge(average(front, back), sums);
}

// Exact sums of bytes as 16-bit integers: stream A | stream B of the first and of the last eight rows of a line.
struct WordSums {
  __m256i front;
  __m256i back;
};

inline WordSums word_sums(const Merged& merged) {
  const __m256i mean = merged.mean;
  const __m256i mean32 = _mm256_and_si256(_mm256_slli_epi16(mean, 5), _mm256_set1_epi8(char(0xe0)));
  const __m256i excess = _mm256_sub_epi8(mean32, merged.modulo);
  const __m256i weights = _mm256_set1_epi16(int16_t(0xff20));  // 32 * mean - excess
  return {_mm256_maddubs_epi16(_mm256_unpacklo_epi8(mean, excess), weights),
          _mm256_maddubs_epi16(_mm256_unpackhi_epi8(mean, excess), weights)};
}

// All sixteen rows of stream A or B.
inline __m256i stream_a(const WordSums& sums) { return _mm256_permute2x128_si256(sums.front, sums.back, 0x20); }
inline __m256i stream_b(const WordSums& sums) { return _mm256_permute2x128_si256(sums.front, sums.back, 0x31); }

inline __m256i both_streams(const WordSums& sums) { return _mm256_add_epi16(stream_a(sums), stream_b(sums)); }

// Sums over a block of entries that are stored as v + 128.
inline __m256i without_bias(__m256i words, int64_t chunks) {
  return _mm256_sub_epi16(words, _mm256_set1_epi16(int16_t(128 * kQuadsPerChunk * chunks)));
}

inline WordSums without_bias(const WordSums& sums, int64_t chunks) {
  return {without_bias(sums.front, chunks), without_bias(sums.back, chunks)};
}

// The exact signed sums of a plane's table entries over a block: rows 0-7 and 8-15, in natural order.
struct BlockSums {
  __m256i rows[2];
};

// T16: each entry is stored as v + 32768 = low + 256 * high.
inline BlockSums sums_of_16_bits(const Merged& merged, int64_t chunks) {
  const WordSums words = word_sums(merged);
  const __m256i low = stream_a(words);
  const __m256i high = without_bias(stream_b(words), chunks);
  const __m256i bytes = _mm256_set1_epi32(0x01000001);
  return {{_mm256_madd_epi16(_mm256_unpacklo_epi16(low, high), bytes),
           _mm256_madd_epi16(_mm256_unpackhi_epi16(low, high), bytes)}};
}

// T8: the sums of one stream, times 65536.
inline BlockSums sums_of_8_bits(__m256i words) {
  const __m256i zero = _mm256_setzero_si256();
  return {{_mm256_unpacklo_epi16(zero, words), _mm256_unpackhi_epi16(zero, words)}};
}

}  // namespace
}  // namespace bcq
