// SPDX-License-Identifier: Apache-2.0
// T16 look-ups for AVX2: from a block of codes and its tables to the exact sums of table entries of sixteen rows.
//
// A 64-byte line of codes (16 rows x 32 inputs of one plane) becomes two vectors of bytes, X = byte 0 | byte 1 and
// Y = byte 2 | byte 3 of the sixteen rows, one byte index per 128-bit lane, because vpshufb has one table per lane. The
// low nibbles look up quads 0, 2, 4, 6 and the high ones 1, 3, 5, 7.
//
// Bytes are summed without widening: a tree of vpavgb gives about sum / 32 (each of its 5 levels rounds up by at most
// 1/2, so 32 * average - sum lies in 0 .. 80), vpaddb gives the sum modulo 256, and both together the exact sum:
// sum = 32 * average - ((32 * average - sum) mod 256). Two cheap instructions a look-up, and none on a shuffle port.
#pragma once

#include <immintrin.h>

#include "kernels/bcq_matmul/lookup_plan.h"

namespace bcq {
namespace {

constexpr int kPrefetchBytes = 4096;

// The layout of one chunk's tables: four vectors of low bytes, then four of high bytes, each X even, X odd, Y even and
// Y odd quads. Offset of a quad's sixteen low bytes:
inline int table_offset(int quad) { return 64 * (quad >> 2) + 32 * (quad & 1) + 16 * (quad >> 1 & 1); }
constexpr int kHighBytes = 128;

// ---- indexes: the nibbles of one line ----

inline __m256i four_rows(const uint32_t* words) {
  // Lane 0: byte 0 of four rows twice, byte 2 twice; lane 1: bytes 1 and 3.
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 0, 4, 8, 12, 2, 6, 10, 14, 2, 6, 10, 14,  //
                                         1, 5, 9, 13, 1, 5, 9, 13, 3, 7, 11, 15, 3, 7, 11, 15);
  const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four), order);
}

// Rows lie in the order 0-3, 8-11, 4-7, 12-15.
struct Line {
  __m256i x;
  __m256i y;
};

inline Line load_line(const uint32_t* line) {
  _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes, _MM_HINT_T0);
  const __m256i first = _mm256_blend_epi32(four_rows(line), four_rows(line + 8), 0xaa);
  const __m256i second = _mm256_blend_epi32(four_rows(line + 4), four_rows(line + 12), 0xaa);
  return {_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second)};
}

// Indexes of the even and the odd quads of X or Y.
struct Nibbles {
  __m256i even;
  __m256i odd;
};

inline Nibbles split(__m256i bytes) {
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(bytes, nibble), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble)};
}

// Where the indexes of a block come from: straight from the codes, or split before for several rows of A. Y is split
// only when X is done with, which saves registers.
struct FromCodes {
  const uint32_t* first;
  int64_t stride;
  Line line(int chunk) const { return load_line(first + chunk * stride); }
  static Nibbles x(const Line& line) { return split(line.x); }
  static Nibbles y(Line& line) {
    asm("" : "+x"(line.y));
    return split(line.y);
  }
};

struct LineNibbles {
  Nibbles x;
  Nibbles y;
};

struct FromBuffer {
  const LineNibbles* lines;
  const LineNibbles& line(int chunk) const { return lines[chunk]; }
  static const Nibbles& x(const LineNibbles& line) { return line.x; }
  static const Nibbles& y(const LineNibbles& line) { return line.y; }
};

inline LineNibbles nibbles_of(const uint32_t* line) {
  const Line bytes = load_line(line);
  return {split(bytes.x), split(bytes.y)};
}

// ---- look-ups ----

struct ByteSums {
  __m256i low;   // modulo 256
  __m256i high;
};

struct Averages {
  __m256i low;
  __m256i high;
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

inline Averages look_up_both(const uint8_t* table, const Nibbles& index, ByteSums& sums) {
  const __m256i low = look_up_pair(table, index, sums.low);
  return {low, look_up_pair(table + kHighBytes, index, sums.high)};
}

inline Averages average(const Averages& a, const Averages& b) {
  return {_mm256_avg_epu8(a.low, b.low), _mm256_avg_epu8(a.high, b.high)};
}

template <typename Source>
inline Averages chunk_averages(const Source& source, const uint8_t* tables, int chunk, ByteSums& sums) {
  auto&& line = source.line(chunk);
  const uint8_t* table = tables + size_t(chunk) * kT16.table_bytes;
  const Averages x = look_up_both(table, Source::x(line), sums);
  return average(x, look_up_both(table + 64, Source::y(line), sums));
}

// [a's lane 0 | b's lane 0] and [a's lane 1 | b's lane 1], the latter with its lanes exchanged: what is combined next
// lane by lane is then a's two lanes and b's two lanes. A blend is cheaper than a second permutation.
inline __m256i outer_lanes(__m256i a, __m256i b) { return _mm256_blend_epi32(a, b, 0xf0); }
inline __m256i inner_lanes(__m256i a, __m256i b) { return _mm256_permute2x128_si256(a, b, 0x21); }

// Both lanes and both byte tables in one vector: lane 0 low bytes, lane 1 high bytes.
struct Merged {
  __m256i mean;    // about the sum of all entries' bytes / 32
  __m256i modulo;  // that sum modulo 256
};

inline Merged merge(const Averages& averages, const ByteSums& sums) {
  return {_mm256_avg_epu8(outer_lanes(averages.low, averages.high), inner_lanes(averages.low, averages.high)),
          _mm256_add_epi8(outer_lanes(sums.low, sums.high), inner_lanes(sums.low, sums.high))};
}

// The exact signed sums of a plane's table entries over a block: rows 0-7 and 8-15, in natural order.
struct BlockSums {
  __m256i rows[2];
};

inline BlockSums exact_sums(const Merged& merged, int chunks) {
  const __m256i mean = merged.mean;
  const __m256i mean32 = _mm256_and_si256(_mm256_slli_epi16(mean, 5), _mm256_set1_epi8(char(0xe0)));
  const __m256i excess = _mm256_sub_epi8(mean32, merged.modulo);
  const __m256i weights = _mm256_set1_epi16(int16_t(0xff20));  // 32 * mean - excess
  const __m256i front = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(mean, excess), weights);
  const __m256i back = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(mean, excess), weights);
  // Lane 0 of both holds sums of low bytes, lane 1 of high bytes. Each entry carries a bias of 32768 = 256 * 128.
  const __m256i low = _mm256_permute2x128_si256(front, back, 0x20);
  const __m256i bias = _mm256_set1_epi16(int16_t(128 * kQuadsPerChunk * chunks));
  const __m256i high = _mm256_sub_epi16(_mm256_permute2x128_si256(front, back, 0x31), bias);
  const __m256i bytes = _mm256_set1_epi32(0x01000001);  // low + 256 * high
  return {{_mm256_madd_epi16(_mm256_unpacklo_epi16(low, high), bytes),
           _mm256_madd_epi16(_mm256_unpackhi_epi16(low, high), bytes)}};
}

template <int chunks, typename Source>
inline Merged look_up_block(const Source& source, const uint8_t* tables) {
  const __m256i zero = _mm256_setzero_si256();
  const Averages none = {zero, zero};
  ByteSums sums = {zero, zero};
  Averages front = chunk_averages(source, tables, 0, sums);
  front = average(front, chunks > 1 ? chunk_averages(source, tables, 1, sums) : none);
  asm("" : "+x"(front.low), "+x"(front.high));  // nothing of these chunks may wait for the next ones
  Averages back = none;
  if (chunks > 2) {
    back = chunk_averages(source, tables, 2, sums);
    back = average(back, chunks > 3 ? chunk_averages(source, tables, 3, sums) : none);
  }
  return merge(average(front, back), sums);
}

}  // namespace
}  // namespace bcq
