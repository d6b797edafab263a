// SPDX-License-Identifier: Apache-2.0
// AVX2 look-ups for one row of A. Some tiles pass each block together: its tables come into the first-level cache once
// for all of them, and the long chains of instructions that end their sums overlap.
#pragma once

#include "kernels/bcq_matmul/avx2_outputs.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int64_t kTilesAtOnce = 16;
constexpr int64_t kLinesAtOnce = 32;  // lines of a chunk of these tiles, at most
constexpr int64_t kWordsInFlight = 2048;  // 8 KB, of all tiles at once: what a thread needs to stream from memory

// How many tiles pass together: an even number, so many that what a block costs besides its lines does not matter.
inline int64_t tiles_at_once(int64_t bits) {
  const int64_t tiles = 24 / bits & ~int64_t(1);
  return tiles < 4 ? 4 : tiles > kTilesAtOnce ? kTilesAtOnce : tiles;
}

// The codes of some tiles from a block on.
template <typename Order>
struct TileCodes {
  const uint32_t* first;
  int64_t tile_words;
  int64_t line_stride;
  int64_t ahead;
  FromCodes<Order> at(int64_t tile, int64_t plane) const {
    return {first + tile * tile_words + plane * kTileRows, line_stride, ahead};
  }
};

// The next codes to prefetch lie in the same tiles, and at their end in the tiles that follow these.
template <typename Order>
inline TileCodes<Order> tile_codes(const MatMulProblem& p, const LookupPlan& plan, const LookupBlock& block,
                                   int64_t tile, int64_t count) {
  const int64_t line_stride = p.bits * kTileRows;
  const int64_t tile_words = plan.chunks * line_stride;
  const bool last = (plan.chunks - block.first_chunk) * line_stride <= kWordsInFlight / count;
  const int64_t ahead = kWordsInFlight / count + (last ? (count - 1) * tile_words : 0);
  return {first_line(p, plan, block, tile), tile_words, line_stride, ahead};
}

// The factors of one block for some tiles, from the first tile on.
struct Factors {
  const uint16_t* alpha_1;
  const uint16_t* alpha_rest;
  const uint16_t* offset;  // or nullptr
  int64_t stride;          // of alpha_1 and offset from tile to tile; alpha_rest has bits - 1 times as much
  int64_t bits;
  int64_t chunks;
  float scale;
  float sum;

  void next_tile() {
    alpha_1 += stride;
    alpha_rest += stride * (bits - 1);
    if (offset) offset += stride;
  }
  const uint16_t* alpha(int64_t plane) const { return plane == 0 ? alpha_1 : alpha_rest + (plane - 1) * kTileRows; }
};

inline Factors factors_of(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row,
                          const LookupBlock& block, int64_t tile) {
  const int64_t cell = tile * plan.groups + block.group;
  const uint16_t* rest = p.bits > 1 ? p.alpha_rest + cell * (p.bits - 1) * kTileRows : p.alpha_1;
  const uint16_t* offset = p.offset ? p.offset + cell * kTileRows : nullptr;
  return {p.alpha_1 + cell * kTileRows, rest,         offset,
          plan.groups * kTileRows,      p.bits,       block.chunks,
          row.scale[block.number],      row.sum[block.number]};
}

// 16-bit entries: a tree of low and one of high bytes for each tile and plane.
struct OneT16 {
  static constexpr Entries kEntries = kT16;

  template <int chunks, typename Order>
  static void look_up(const TileCodes<Order>& codes, int64_t bits, int64_t tiles, const uint8_t* tables, Merged* to) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t plane = 0; plane < bits; ++plane) {
        keep_in_memory(tables);
        *to++ = look_up_block<chunks>(OneLineTwoTables<FromCodes<Order>>{
            codes.at(tile, plane), tables, tables + kVectorTables, kT16.table_bytes});
      }
    }
  }

  // Not inlined: compilers would keep its constants in registers during the look-ups, which need all of them.
  __attribute__((noinline)) static void add(Factors f, int64_t tiles, const Merged* merged, float* outputs) {
    for (const float* end = outputs + tiles * kTileRows; outputs < end; outputs += kTileRows, f.next_tile()) {
      Sixteen y = load(outputs);
      add_scaled(y, sixteen_halves(f.alpha_1), f.scale, sums_of_16_bits(*merged++, f.chunks));
      for (int64_t plane = 1; plane < f.bits; ++plane) {
        add_scaled(y, sixteen_halves(f.alpha(plane)), f.scale, sums_of_16_bits(*merged++, f.chunks));
      }
      if (f.offset) add_offset(y, sixteen_halves(f.offset), f.sum);
      store(outputs, y);
    }
  }
};

// 8-bit entries: a tree for each of two tiles. An odd last one is computed twice.
struct OneT8 {
  static constexpr Entries kEntries = kT8;

  template <int chunks, typename Order>
  static void look_up(const TileCodes<Order>& codes, int64_t bits, int64_t tiles, const uint8_t* tables, Merged* to) {
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      const int64_t other = tile + 1 < tiles ? tile + 1 : tile;
      for (int64_t plane = 0; plane < bits; ++plane) {
        keep_in_memory(tables);
        *to++ = look_up_block<chunks>(
            TwoLinesOneTable<Order>{codes.at(tile, plane), codes.at(other, plane), tables, kT8.table_bytes});
      }
    }
  }

  __attribute__((noinline)) static void add(Factors f, int64_t tiles, const Merged* merged, float* outputs) {
    for (; tiles > 0; tiles -= 2, outputs += 2 * kTileRows, f.next_tile(), f.next_tile()) {
      const int64_t step = tiles > 1 ? f.stride : 0;  // from the factors of one tile to those of the other
      float* outputs_b = tiles > 1 ? outputs + kTileRows : outputs;
      Sixteen a = load(outputs);
      Sixteen b = load(outputs_b);
      add_plane(f, f.alpha_1, step, *merged++, a, b);
      for (int64_t plane = 1; plane < f.bits; ++plane) {
        add_plane(f, f.alpha(plane), step * (f.bits - 1), *merged++, a, b);
      }
      if (f.offset) add_offset(a, sixteen_halves(f.offset), f.sum);
      if (f.offset) add_offset(b, sixteen_halves(f.offset + step), f.sum);
      store(outputs, a);
      store(outputs_b, b);
    }
  }

 private:
  static void add_plane(const Factors& f, const uint16_t* alpha, int64_t step, const Merged& merged, Sixteen& a,
                        Sixteen& b) {
    const WordSums sums = without_bias(word_sums(merged), f.chunks);
    add_scaled(a, sixteen_halves(alpha), f.scale * kOver65536, sums_of_8_bits(stream_a(sums)));
    add_scaled(b, sixteen_halves(alpha + step), f.scale * kOver65536, sums_of_8_bits(stream_b(sums)));
  }
};

template <typename Method, typename Order>
void tiles_for_one(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row, int64_t tile, int64_t count,
                   float* y) {
  for (int64_t i = 0; i < count; ++i) store(y + i * kTileRows, Sixteen{});
  for_each_block(plan, [&](const LookupBlock& block) {
    const TileCodes<Order> codes = tile_codes<Order>(p, plan, block, tile, count);
    const uint8_t* tables = first_table(plan, row, block);
    Merged merged[kLinesAtOnce];
    switch (block.chunks) {
      case 4: Method::template look_up<4>(codes, p.bits, count, tables, merged); break;
      case 3: Method::template look_up<3>(codes, p.bits, count, tables, merged); break;
      case 2: Method::template look_up<2>(codes, p.bits, count, tables, merged); break;
      default: Method::template look_up<1>(codes, p.bits, count, tables, merged);
    }
    Method::add(factors_of(p, plan, row, block, tile), count, merged, y);
  });
}

template <typename Method, typename Order>
void run_one(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t begin_tile, int64_t end_tile) {
  alignas(64) float y[kTilesAtOnce * kTileRows];
  const int64_t at_once = tiles_at_once(p.bits);
  for (int64_t tile = begin_tile; tile < end_tile; tile += at_once) {
    const int64_t count = end_tile - tile < at_once ? end_tile - tile : at_once;
    tiles_for_one<Method, Order>(p, plan, set.rows[0], tile, count, y);
    for (int64_t i = 0; i < count; ++i) store_tile(p, set.numbers[0], tile + i, y + i * kTileRows, *set.rows[0].out);
  }
}

}  // namespace
}  // namespace bcq
