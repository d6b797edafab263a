// SPDX-License-Identifier: Apache-2.0
// From a 64-byte line of codes (16 rows x 32 inputs of one plane) to indexes into tables of sixteen entries, for AVX2.
//
// vpshufb has one table per 128-bit lane, so a lane must hold one byte index of all sixteen rows: a line becomes two
// vectors X = byte 0 | byte 1 and Y = byte 2 | byte 3. Low nibbles are the quads 0, 2, 4, 6, high ones 1, 3, 5, 7.
// A resident copy of codes holds X and Y as they are; the order of the disk costs eight more instructions a line.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "kernels/bcq_matmul/lookup_plan.h"

namespace bcq {
namespace {

// Indexes of the even and the odd quads of X or Y.
struct Nibbles {
  __m256i even;
  __m256i odd;
};

inline __m256i nibble() { return _mm256_set1_epi8(0x0f); }

inline Nibbles split(__m256i bytes) {
  return {_mm256_and_si256(bytes, nibble()), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble())};
}

// The same from memory, read twice: where registers are short, GCC 12 would rather send what it has read over the stack.
inline Nibbles split(const __m256i* bytes) {
  __m256i even;
  asm("vpand %1, %2, %0" : "=x"(even) : "m"(*bytes), "x"(nibble()));
  return {even, _mm256_and_si256(_mm256_srli_epi16(_mm256_load_si256(bytes), 4), nibble())};
}

// Each order says what to hold of a line, and gives the indexes of its X and then of its Y, with rows in the order 0-3,
// 8-11, 4-7, 12-15. late_y() is for look-ups after those of X: no compiler may take Y before, which saves registers.
class DiskOrder {
 public:
  struct Line {
    __m256i x;
    __m256i y;
  };
  static Line hold(const uint32_t* line) {
    const __m256i first = _mm256_blend_epi32(four_rows(line), four_rows(line + 8), 0xaa);
    const __m256i second = _mm256_blend_epi32(four_rows(line + 4), four_rows(line + 12), 0xaa);
    return {_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second)};
  }
  static Nibbles x(const Line& line) { return split(line.x); }
  static Nibbles y(const Line& line) { return split(line.y); }
  static Nibbles late_y(Line& line) {
    asm("" : "+x"(line.y));
    return y(line);
  }

 private:
  static __m256i four_rows(const uint32_t* words) {
    // Lane 0: byte 0 of four rows twice, byte 2 twice; lane 1: bytes 1 and 3.
    const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 0, 4, 8, 12, 2, 6, 10, 14, 2, 6, 10, 14,  //
                                           1, 5, 9, 13, 1, 5, 9, 13, 3, 7, 11, 15, 3, 7, 11, 15);
    const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four), order);
  }
};

// Codes that hold more planes than are read: the order of the disk, with gaps between the lines of two chunks.
class GappedOrder : public DiskOrder {};

struct ResidentOrder {
  using Line = const __m256i*;
  static Line hold(const uint32_t* line) { return reinterpret_cast<const __m256i*>(line); }
  static Nibbles x(Line line) { return split(line); }
  static Nibbles y(Line line) { return split(line + 1); }
  static Nibbles late_y(Line line) { return y(line); }
};

inline void order_line(const uint32_t* line, uint32_t* to) {
  const DiskOrder::Line bytes = DiskOrder::hold(line);
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), bytes.x);
  _mm256_store_si256(reinterpret_cast<__m256i*>(to + 8), bytes.y);
}

// The lines of a block, straight from the codes.
template <typename Order>
struct FromCodes {
  using Line = typename Order::Line;
  const uint32_t* first;
  int64_t stride;
  const uint32_t* next;  // codes to prefetch, a line for each of these
  // Words from what a chunk prefetches to what the next one does: all lines in a row, or only those that will be read.
  int64_t next_stride() const { return std::is_same_v<Order, GappedOrder> ? stride : kTileRows; }
  Line line(int chunk) const {
    _mm_prefetch(reinterpret_cast<const char*>(next + chunk * next_stride()), _MM_HINT_T0);
    return Order::hold(first + chunk * stride);
  }
  static Nibbles x(const Line& line) { return Order::x(line); }
  static Nibbles y(Line& line) { return Order::late_y(line); }
};

struct LineNibbles {
  Nibbles x;
  Nibbles y;
};

}  // namespace
}  // namespace bcq
