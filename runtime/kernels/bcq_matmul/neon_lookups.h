// SPDX-License-Identifier: Apache-2.0
// Look-ups for NEON: from lines of codes and tables to exact sums of table entries.
//
// A 64-byte line of codes is four vectors of four rows. Its 16-bit lanes are bytes 0 and 1, or bytes 2 and 3, of a row;
// sorted by that, as a resident copy is, a vector has a pair of bytes of eight rows. One TBL over two registers then
// looks up two quads of each row, the odd lanes in the second table (index + 16), and UADALP adds both to the row's
// 16-bit sum: two instructions for sixteen entries, and no tails. Low nibbles are the quads 0, 2, 4, 6, high nibbles
// 1, 3, 5, 7. Sums of 32 quads of bytes lie below 2^13.
#pragma once

#include <arm_neon.h>

#include "kernels/bcq_matmul/lookup_plan.h"
#include "kernels/bcq_matmul/lookup_prepare.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

// ---- what compilers are told ----

#ifdef __aarch64__
// index's lower halves become the lower or upper halves of the bytes. By intrinsics GCC copies the index first, and clang
// sees two instructions in the selection.
inline void take_low(uint8x16_t& index, uint8x16_t bytes, uint8x16_t nibble) {
  asm("bit %0.16b, %1.16b, %2.16b" : "+w"(index) : "w"(bytes), "w"(nibble));
}
inline void take_high(uint8x16_t& index, uint8x16_t bytes) { asm("sri %0.16b, %1.16b, #4" : "+w"(index) : "w"(bytes)); }
// Compilers would load all codes of a chunk first, and send indexes over the stack.
inline void no_loads_before() { asm volatile("" ::: "memory"); }
#else  // tests emulate the instructions
inline void take_low(uint8x16_t& index, uint8x16_t bytes, uint8x16_t nibble) { index = vbslq_u8(nibble, bytes, index); }
inline void take_high(uint8x16_t& index, uint8x16_t bytes) { index = vsriq_n_u8(index, bytes, 4); }
inline void no_loads_before() {}
#endif

// clang would postpone sums, and send what was looked up over the stack; GCC would move a sum that is held so.
template <typename Vector>
inline void add_now([[maybe_unused]] Vector& sum) {
#if defined(__aarch64__) && defined(__clang__)
  asm volatile("" : "+w"(sum));
#endif
}

// ---- indexes ----

// Indexes of eight rows into the tables of the even quads and of the odd quads of two bytes. The upper half of a byte
// says which of the two tables, and stays when the lower half is replaced by another nibble.
struct Indexes {
  uint8x16_t even = vreinterpretq_u8_u16(vdupq_n_u16(0x1000));  // the odd lanes' table is the second one
  uint8x16_t odd = vreinterpretq_u8_u16(vdupq_n_u16(0x1000));
};

inline uint16x8_t eight_words(const uint32_t* words) { return vld1q_u16(reinterpret_cast<const uint16_t*>(words)); }

// Each order of codes gives of a line the bytes 0 and 1 (pair 0) or 2 and 3 (pair 1) of rows 0-7 (half 0) or 8-15.
struct DiskOrder {
  template <int pair>
  __attribute__((always_inline)) static uint8x16_t bytes(const uint32_t* line, int half) {
    const uint16x8_t front = eight_words(line + half * kTileRows / 2);
    const uint16x8_t back = eight_words(line + half * kTileRows / 2 + 4);
    return vreinterpretq_u8_u16(pair == 0 ? vuzp1q_u16(front, back) : vuzp2q_u16(front, back));
  }
};

// A resident copy holds them as they are used.
struct ResidentOrder {
  template <int pair>
  __attribute__((always_inline)) static uint8x16_t bytes(const uint32_t* line, int half) {
    return vld1q_u8(reinterpret_cast<const uint8_t*>(line) + 32 * pair + 16 * half);
  }
};

inline void order_line(const uint32_t* line, uint32_t* to) {
  uint8_t* const out = reinterpret_cast<uint8_t*>(to);
  for (int half = 0; half < 2; ++half) {
    vst1q_u8(out + 16 * half, DiskOrder::bytes<0>(line, half));
    vst1q_u8(out + 32 + 16 * half, DiskOrder::bytes<1>(line, half));
  }
}

__attribute__((always_inline)) inline void next_indexes(uint8x16_t bytes, uint8x16_t nibble, Indexes& index) {
  take_low(index.even, bytes, nibble);
  take_high(index.odd, bytes);
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
  using Order = DiskOrder;
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
  using Order = DiskOrder;
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

// A method on a resident copy.
template <typename Method>
struct Resident : Method {
  using Order = ResidentOrder;
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
__attribute__((always_inline)) inline void look_up_planes(const uint32_t* line, const uint8_t* sets, uint8x16_t nibble, Indexes (&index)[2],
                                                          TileSums<Method> (&sums)[planes]) {
  const uint8x16x2_t even = load_tables(sets), even_high = load_tables(sets + 32);
  const uint8x16x2_t odd = load_tables(sets + Method::kSetBytes), odd_high = load_tables(sets + Method::kSetBytes + 32);
#pragma GCC unroll 8
  for (int i = 0; i < 2 * planes; ++i) {
    no_loads_before();
    next_indexes(Method::Order::template bytes<pair>(line + i / 2 * kTileRows, i % 2), nibble, index[i % 2]);
    sums[i / 2][i % 2].add(even, even_high, index[i % 2].even);
    sums[i / 2][i % 2].add(odd, odd_high, index[i % 2].odd);
  }
}

// One plane: rows of A share the indexes.
template <typename Method, int rows, int pair>
__attribute__((always_inline)) inline void look_up_rows(const uint32_t* line, const uint8_t* sets, size_t row_bytes,
                                                        uint8x16_t nibble, Indexes (&index)[2], TileSums<Method> (&sums)[rows]) {
  for (int half = 0; half < 2; ++half) {
    next_indexes(Method::Order::template bytes<pair>(line, half), nibble, index[half]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r, sets += row_bytes) {
    no_loads_before();
    const uint8x16x2_t even = load_tables(sets), even_high = load_tables(sets + 32);
    sums[r][0].add(even, even_high, index[0].even);
    sums[r][1].add(even, even_high, index[1].even);
    no_loads_before();
    const uint8x16x2_t odd = load_tables(sets + Method::kSetBytes), odd_high = load_tables(sets + Method::kSetBytes + 32);
    sums[r][0].add(odd, odd_high, index[0].odd);
    sums[r][1].add(odd, odd_high, index[1].odd);
  }
}

// Sixteen floats: the outputs or factors of a tile's rows.
struct Sixteen {
  float32x4_t rows[4];
};

__attribute__((always_inline)) inline Sixteen sixteen_floats(const float* x) {
  return {{vld1q_f32(x), vld1q_f32(x + 4), vld1q_f32(x + 8), vld1q_f32(x + 12)}};
}

__attribute__((always_inline)) inline Sixteen sixteen_halves(const uint16_t* x) {
  return {{four_halves(x), four_halves(x + 4), four_halves(x + 8), four_halves(x + 12)}};
}

inline void store(float* to, const Sixteen& x) {
  for (int v = 0; v < 4; ++v) vst1q_f32(to + 4 * v, x.rows[v]);
}

// y += alpha * (scale * sum)
template <typename Method>
__attribute__((always_inline)) inline void add_scaled(Sixteen& y, const Sixteen& alpha, float scale,
                                                      const TileSums<Method>& sums) {
  const float32x4_t s = vdupq_n_f32(scale);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const EightSums eight = sums[half].total();
    float32x4_t* rows = y.rows + 2 * half;
    const float32x4_t* factors = alpha.rows + 2 * half;
    rows[0] = vfmaq_f32(rows[0], factors[0], vmulq_f32(s, vcvtq_f32_s32(eight.front)));
    rows[1] = vfmaq_f32(rows[1], factors[1], vmulq_f32(s, vcvtq_f32_s32(eight.back)));
  }
}

// One row of A and some consecutive planes, or one plane and some rows, of one block, added to y[rows][16]. line: the
// first of these planes; step: words from a chunk to the next.
template <typename Method, int rows, int planes>
__attribute__((always_inline)) inline void add_planes(const MatMulProblem& p, const Rows& a, const LookupBlock& block,
                                                      int64_t cell, int64_t plane, int64_t step, const uint32_t* line,
                                                      int64_t ahead, float* y) {
  static_assert(rows == 1 || planes == 1);
  const uint8x16_t nibble = vdupq_n_u8(0x0f);
  Indexes index[2];
  TileSums<Method> sums[rows * planes];
  const uint8_t* table = a.tables(0) + size_t(block.first_chunk) * Method::kEntries.table_bytes;
  for (int64_t left = block.chunks; left > 0; --left, line += step, table += Method::kEntries.table_bytes) {
#pragma GCC unroll 8
    for (int i = 0; i < planes; ++i) __builtin_prefetch(line + ahead + i * kTileRows);
    if constexpr (rows == 1) {
      look_up_planes<Method, planes, 0>(line, table, nibble, index, sums);
      look_up_planes<Method, planes, 1>(line, table + 2 * Method::kSetBytes, nibble, index, sums);
    } else {
      look_up_rows<Method, rows, 0>(line, table, a.row_bytes, nibble, index, sums);
      look_up_rows<Method, rows, 1>(line, table + 2 * Method::kSetBytes, a.row_bytes, nibble, index, sums);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    Sixteen sixteen = sixteen_floats(y + r * kTileRows);
#pragma GCC unroll 8
    for (int i = 0; i < planes; ++i) {
      const Sixteen alpha = sixteen_halves(plane_alpha(p, cell, plane + i));
      add_scaled<Method>(sixteen, alpha, a.scale(r, block.number), sums[i + r]);
    }
    store(y + r * kTileRows, sixteen);
  }
}

// y += offset * (sum of the block's activations)
template <int rows>
inline void add_offset(const MatMulProblem& p, const Rows& a, const LookupBlock& block, int64_t cell, float* y) {
  const Sixteen offset = sixteen_halves(p.offset + cell * kTileRows);
  for (int r = 0; r < rows; ++r, y += kTileRows) {
    Sixteen sixteen = sixteen_floats(y);
    const float32x4_t sum = vdupq_n_f32(a.sum(r, block.number));
    for (int v = 0; v < 4; ++v) sixteen.rows[v] = vfmaq_f32(sixteen.rows[v], offset.rows[v], sum);
    store(y, sixteen);
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
