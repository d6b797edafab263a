// SPDX-License-Identifier: Apache-2.0
// Look-ups for NEON: from lines of codes and tables to exact sums of table entries.
//
// A 64-byte line of codes is four vectors of four rows. Its 16-bit lanes are bytes 0 and 1, or bytes 2 and 3, of a row;
// sorted by that, a vector has a pair of bytes of eight rows. One TBL over two registers then looks up two quads of
// each row, the odd lanes in the second table (index + 16), and UADALP adds both to the row's 16-bit sum: two
// instructions for sixteen entries, and no tails. Low nibbles are the quads 0, 2, 4, 6, high nibbles 1, 3, 5, 7.
// Sums of 32 quads of bytes lie below 2^13.
#pragma once

#include <arm_neon.h>

#include "kernels/bcq_matmul/lookup_plan.h"
#include "kernels/bcq_matmul/lookup_prepare.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

// ---- what compilers are told ----

#ifdef __aarch64__  // not where tests emulate the instructions
// Keeps a vector in a register, whatever is known of it, and what uses it behind everything that was fixed before.
template <typename Vector>
__attribute__((always_inline)) inline void fix(Vector& x) { asm volatile("" : "+w"(x)); }
// Compilers would load all codes of a chunk first, and send indexes over the stack.
inline void no_loads_before() { asm volatile("" ::: "memory"); }
#else
template <typename Vector>
inline void fix(Vector&) {}
inline void no_loads_before() {}
#endif

// clang would postpone sums, and send what was looked up over the stack; GCC would move a fixed sum to and fro.
template <typename Vector>
__attribute__((always_inline)) inline void add_now([[maybe_unused]] Vector& sum) {
#ifdef __clang__
  fix(sum);
#endif
}

// ---- indexes ----

struct Masks {
  uint8x16_t nibble = vdupq_n_u8(0x0f);
  uint8x16_t second = vreinterpretq_u8_u16(vdupq_n_u16(0x1000));  // the odd lanes' table
};

inline Masks fixed_masks() {
  Masks masks;
  fix(masks.nibble);
  fix(masks.second);
  return masks;
}

// Indexes of eight rows into the tables of the even quads and of the odd quads of two bytes.
struct Indexes {
  uint8x16_t even;
  uint8x16_t odd;
};

inline uint16x8_t eight_words(const uint32_t* words) { return vld1q_u16(reinterpret_cast<const uint16_t*>(words)); }

// Of the bytes 0 and 1 (pair 0) or 2 and 3 (pair 1) of the eight rows whose words these are.
template <int pair>
__attribute__((always_inline)) inline Indexes indexes_of(const uint32_t* words, Masks masks) {
  const uint16x8_t front = eight_words(words);
  const uint16x8_t back = eight_words(words + 4);
  uint8x16_t bytes = vreinterpretq_u8_u16(pair == 0 ? vuzp1q_u16(front, back) : vuzp2q_u16(front, back));
  const uint8x16_t odd = vorrq_u8(vshrq_n_u8(bytes, 4), masks.second);
  fix(bytes);
  return {vbslq_u8(masks.nibble, bytes, masks.second), odd};
}

// ---- methods: how a chunk's tables are written and read ----

// Entries of two quads: sixteen bytes each.
inline uint8x16x2_t load_tables(const uint8_t* table) { return vld1q_u8_x2(table); }

// Of a chunk the tables lie in four sets, of two quads each: the even quads of bytes 0 and 1, the odd ones, the even and
// the odd ones of bytes 2 and 3.
inline int set_of(int quad) { return 2 * (quad >> 2) + (quad & 1); }
inline int place_of(int quad) { return quad >> 1 & 1; }

// Entries n = 0..15 of one quad: bit j of n is the sign of x[j], 1 for plus. Already scaled; rounds to nearest.
inline int16x8x2_t quad_entries(const float* x) {
  static const uint32_t signs[2][4] = {{1u << 31, 0, 1u << 31, 0}, {1u << 31, 1u << 31, 0, 0}};
  const float32x4_t quad = vld1q_f32(x);
  const auto with_signs = [](float32x4_t all, const uint32_t* sign) {
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(all), vld1q_u32(sign)));
  };
  const float32x4_t x01 =
      vaddq_f32(with_signs(vdupq_laneq_f32(quad, 0), signs[0]), with_signs(vdupq_laneq_f32(quad, 1), signs[1]));
  const float32x4_t x2 = vdupq_laneq_f32(quad, 2);
  const float32x4_t x3 = vdupq_laneq_f32(quad, 3);
  const auto rounded = [](float32x4_t four) { return vmovn_s32(vcvtnq_s32_f32(four)); };
  const auto eight = [&](float32x4_t x013) {
    return vcombine_s16(rounded(vsubq_f32(x013, x2)), rounded(vaddq_f32(x013, x2)));
  };
  return {{eight(vsubq_f32(x01, x3)), eight(vaddq_f32(x01, x3))}};
}

inline uint8x16_t low_bytes(const int16x8x2_t& entries) {
  return vuzp1q_u8(vreinterpretq_u8_s16(entries.val[0]), vreinterpretq_u8_s16(entries.val[1]));
}

inline uint8x16_t high_bytes(const int16x8x2_t& entries) {
  return vuzp2q_u8(vreinterpretq_u8_s16(entries.val[0]), vreinterpretq_u8_s16(entries.val[1]));
}

// Sums of entries of eight rows, and what they are as 32-bit integers: rows 0-3 and 4-7.
struct EightSums {
  int32x4_t front;
  int32x4_t back;
};

// An entry is 256 hi + lo, with a signed byte hi and an unsigned byte lo. Of each set first the lows, then the highs.
struct T16 {
  static constexpr Entries kEntries = kT16;
  static constexpr int kMostSums = 4;  // of rows of A or planes, so that they stay in registers
  static constexpr int kSetBytes = 64;

  struct Sums {
    uint16x8_t low = vdupq_n_u16(0);
    int16x8_t high = vdupq_n_s16(0);

    void add(uint8x16x2_t lows, uint8x16x2_t highs, uint8x16_t index) {
      low = vpadalq_u8(low, vqtbl2q_u8(lows, index));
      high = vpadalq_s8(high, vreinterpretq_s8_u8(vqtbl2q_u8(highs, index)));
      add_now(low);
      add_now(high);
    }
    EightSums total() const {
      return {sum(vget_low_s16(high), vget_low_u16(low)), sum(vget_high_s16(high), vget_high_u16(low))};
    }

   private:
    static int32x4_t sum(int16x4_t hi, uint16x4_t lo) {
      return vreinterpretq_s32_u32(vaddw_u16(vreinterpretq_u32_s32(vshll_n_s16(hi, 8)), lo));
    }
  };

  static void write_chunk(const float* scaled, uint8_t* table) {
    for (int quad = 0; quad < kQuadsPerChunk; ++quad) {
      const int16x8x2_t entries = quad_entries(scaled + 4 * quad);
      uint8_t* to = table + kSetBytes * set_of(quad) + 16 * place_of(quad);
      vst1q_u8(to, low_bytes(entries));
      vst1q_u8(to + 32, high_bytes(entries));
    }
  }
};

// An entry is a signed byte.
struct T8 {
  static constexpr Entries kEntries = kT8;
  static constexpr int kMostSums = 8;
  static constexpr int kSetBytes = 32;

  struct Sums {
    int16x8_t all = vdupq_n_s16(0);

    void add(uint8x16x2_t tables, uint8x16x2_t, uint8x16_t index) {
      all = vpadalq_s8(all, vreinterpretq_s8_u8(vqtbl2q_u8(tables, index)));
      add_now(all);
    }
    EightSums total() const { return {vmovl_s16(vget_low_s16(all)), vmovl_s16(vget_high_s16(all))}; }
  };

  static void write_chunk(const float* scaled, uint8_t* table) {
    for (int quad = 0; quad < kQuadsPerChunk; ++quad) {
      vst1q_u8(table + kSetBytes * set_of(quad) + 16 * place_of(quad), low_bytes(quad_entries(scaled + 4 * quad)));
    }
  }
};

// ---- one block ----

// Rows of A by the address of the first and a stride: eight pointers would take registers.
struct Rows {
  LookupRow first;
  size_t row_bytes;
  const uint8_t* tables(int i) const { return first.tables + size_t(i) * row_bytes; }
  float out(int i) const { return at(first.out, i); }
  float scale(int i, int64_t block) const { return at(first.scale + block, i); }
  float sum(int i, int64_t block) const { return at(first.sum + block, i); }

 private:
  float at(const float* values, int i) const {
    return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(values) + size_t(i) * row_bytes);
  }
};

// Sums of one row of A and one plane: rows 0-7 and 8-15 of the tile.
template <typename Method>
using TileSums = typename Method::Sums[2];

// The look-ups of two bytes of each word of a chunk, in one half of its rows at a time. One row of A: planes share what
// is loaded from the tables.
template <typename Method, int planes, int pair>
__attribute__((always_inline)) inline void look_up_planes(const uint32_t* line, const uint8_t* sets, Masks masks,
                                                          TileSums<Method> (&sums)[planes]) {
  const uint8x16x2_t even = load_tables(sets), even_high = load_tables(sets + 32);
  const uint8x16x2_t odd = load_tables(sets + Method::kSetBytes), odd_high = load_tables(sets + Method::kSetBytes + 32);
#pragma GCC unroll 8
  for (int i = 0; i < 2 * planes; ++i) {
    no_loads_before();
    const Indexes index = indexes_of<pair>(line + i * kTileRows / 2, masks);
    sums[i / 2][i % 2].add(even, even_high, index.even);
    sums[i / 2][i % 2].add(odd, odd_high, index.odd);
  }
}

// One plane: rows of A share the indexes.
template <typename Method, int rows, int pair>
__attribute__((always_inline)) inline void look_up_rows(const uint32_t* line, const uint8_t* sets, size_t row_bytes,
                                                        Masks masks, TileSums<Method> (&sums)[rows]) {
  Indexes front = indexes_of<pair>(line, masks);
  Indexes back = indexes_of<pair>(line + kTileRows / 2, masks);
  fix(front.even);
  fix(front.odd);
  fix(back.even);
  fix(back.odd);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r, sets += row_bytes) {
    no_loads_before();
    const uint8x16x2_t even = load_tables(sets), even_high = load_tables(sets + 32);
    sums[r][0].add(even, even_high, front.even);
    sums[r][1].add(even, even_high, back.even);
    no_loads_before();
    const uint8x16x2_t odd = load_tables(sets + Method::kSetBytes), odd_high = load_tables(sets + Method::kSetBytes + 32);
    sums[r][0].add(odd, odd_high, front.odd);
    sums[r][1].add(odd, odd_high, back.odd);
  }
}

// y[0..16) += alpha * (scale * sum)
template <typename Method>
inline void add_scaled(const uint16_t* alpha, float scale, const TileSums<Method>& sums, float* y) {
  const float32x4_t s = vdupq_n_f32(scale);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half, y += 8, alpha += 8) {
    const EightSums eight = sums[half].total();
    vst1q_f32(y, vfmaq_f32(vld1q_f32(y), four_halves(alpha), vmulq_f32(s, vcvtq_f32_s32(eight.front))));
    vst1q_f32(y + 4, vfmaq_f32(vld1q_f32(y + 4), four_halves(alpha + 4), vmulq_f32(s, vcvtq_f32_s32(eight.back))));
  }
}

// One row of A and some consecutive planes, or one plane and some rows, of one block, added to y[rows][16]. line: the
// first of these planes; step: words from a chunk to the next.
template <typename Method, int rows, int planes>
__attribute__((always_inline)) inline void add_planes(const MatMulProblem& p, const Rows& a, const LookupBlock& block,
                                                      int64_t cell, int64_t plane, int64_t step, const uint32_t* line,
                                                      int64_t ahead, float* y) {
  static_assert(rows == 1 || planes == 1);
  const Masks masks = fixed_masks();
  TileSums<Method> sums[rows * planes];
  const uint8_t* table = a.tables(0) + size_t(block.first_chunk) * Method::kEntries.table_bytes;
  for (int64_t left = block.chunks; left > 0; --left, line += step, table += Method::kEntries.table_bytes) {
#pragma GCC unroll 8
    for (int i = 0; i < planes; ++i) __builtin_prefetch(line + ahead + i * kTileRows);
    if constexpr (rows == 1) {
      look_up_planes<Method, planes, 0>(line, table, masks, sums);
      look_up_planes<Method, planes, 1>(line, table + 2 * Method::kSetBytes, masks, sums);
    } else {
      look_up_rows<Method, rows, 0>(line, table, a.row_bytes, masks, sums);
      look_up_rows<Method, rows, 1>(line, table + 2 * Method::kSetBytes, a.row_bytes, masks, sums);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < planes; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      add_scaled<Method>(plane_alpha(p, cell, plane + i), a.scale(r, block.number), sums[i + r], y + r * kTileRows);
    }
  }
}

// y += offset * (sum of the block's activations)
template <int rows>
inline void add_offset(const MatMulProblem& p, const Rows& a, const LookupBlock& block, int64_t cell, float* y) {
  const uint16_t* offset = p.offset + cell * kTileRows;
  for (int r = 0; r < rows; ++r, y += kTileRows) {
    for (int v = 0; v < kTileRows; v += 4) {
      const float32x4_t sum = vdupq_n_f32(a.sum(r, block.number));
      vst1q_f32(y + v, vfmaq_f32(vld1q_f32(y + v), four_halves(offset + v), sum));
    }
  }
}

// The planes of one block from `plane` on; up to `most` of them share what is loaded from the tables.
template <typename Method, int rows, int most>
__attribute__((always_inline)) inline void add_block(const MatMulProblem& p, const Rows& a, const LookupBlock& block,
                                                     int64_t cell, int64_t plane, int64_t bits, int64_t step,
                                                     const uint32_t* line, int64_t ahead, float* y) {
  for (; plane + most <= bits; plane += most) {
    add_planes<Method, rows, most>(p, a, block, cell, plane, step, line + plane * kTileRows, ahead, y);
  }
  if constexpr (most > 1) add_block<Method, rows, most - 1>(p, a, block, cell, plane, bits, step, line, ahead, y);
}

}  // namespace
}  // namespace bcq
