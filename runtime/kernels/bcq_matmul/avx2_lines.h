// SPDX-License-Identifier: Apache-2.0
// From a 64-byte line of codes (16 rows x 32 inputs of one plane) to indexes into tables of sixteen entries, for AVX2.
//
// vpshufb has one table per 128-bit lane, so a lane must hold one byte index of all sixteen rows: a line becomes two
// vectors X = byte 0 | byte 1 and Y = byte 2 | byte 3. Low nibbles are the quads 0, 2, 4, 6, high ones 1, 3, 5, 7.
// A resident copy of codes holds X and Y as they are; the order of the disk costs eight more instructions a line.
#pragma once

#include <immintrin.h>

#include "kernels/bcq_matmul/lookup_plan.h"

namespace bcq {
namespace {

// Rows lie in the order 0-3, 8-11, 4-7, 12-15.
struct Line {
  __m256i x;
  __m256i y;
};

inline __m256i four_rows(const uint32_t* words) {
  // Lane 0: byte 0 of four rows twice, byte 2 twice; lane 1: bytes 1 and 3.
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 0, 4, 8, 12, 2, 6, 10, 14, 2, 6, 10, 14,  //
                                         1, 5, 9, 13, 1, 5, 9, 13, 3, 7, 11, 15, 3, 7, 11, 15);
  const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four), order);
}

struct DiskOrder {
  static Line load(const uint32_t* line) {
    const __m256i first = _mm256_blend_epi32(four_rows(line), four_rows(line + 8), 0xaa);
    const __m256i second = _mm256_blend_epi32(four_rows(line + 4), four_rows(line + 12), 0xaa);
    return {_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second)};
  }
};

struct ResidentOrder {
  static Line load(const uint32_t* line) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(line)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(line + 8))};
  }
};

inline void order_line(const uint32_t* line, uint32_t* to) {
  const Line bytes = DiskOrder::load(line);
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), bytes.x);
  _mm256_store_si256(reinterpret_cast<__m256i*>(to + 8), bytes.y);
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

// The lines of a block, straight from the codes. Y is split only when X is done with, which saves registers.
template <typename Order>
struct FromCodes {
  const uint32_t* first;
  int64_t stride;
  int64_t ahead;  // of the codes to prefetch, in words
  Line line(int chunk) const {
    const uint32_t* at = first + chunk * stride;
    _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T0);
    return Order::load(at);
  }
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

}  // namespace
}  // namespace bcq
