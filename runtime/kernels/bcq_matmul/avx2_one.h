// SPDX-License-Identifier: Apache-2.0
// AVX2 look-ups for one row of A. Some tiles pass each block together: its tables come into the first-level cache once
// for all of them, and the long chains of instructions that end their sums overlap.
#pragma once

#include "kernels/bcq_matmul/avx2_outputs.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int64_t kMaxBits = 8;
constexpr int64_t kTilesAtOnce = 4;
constexpr int64_t kWordsAhead = 1024;  // 4 KB: what one thread needs in flight to stream from memory

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
  const bool last = (plan.chunks - block.first_chunk) * line_stride <= kWordsAhead / count;
  const int64_t ahead = kWordsAhead / count + (last ? (count - 1) * tile_words : 0);
  return {first_line(p, plan, block, tile), tile_words, line_stride, ahead};
}

// A block of some tiles, whose look-ups are done.
struct TileBlock {
  const MatMulProblem& p;
  const LookupRow& row;
  const LookupBlock& block;
  int64_t first_cell;
  int64_t groups;
  int64_t count;  // of tiles
  Sixteen alpha(int64_t tile, int64_t plane) const {
    return sixteen_halves(plane_alpha(p, first_cell + tile * groups, plane));
  }
  float scale() const { return row.scale[block.number]; }
  void end(int64_t tile, Sixteen& y, float* outputs) const {
    if (p.offset) {
      const uint16_t* offset = p.offset + (first_cell + tile * groups) * kTileRows;
      add_offset(y, sixteen_halves(offset), row.sum[block.number]);
    }
    store(outputs + tile * kTileRows, y);
  }
};

// 16-bit entries: a tree of low and one of high bytes for each tile and plane.
struct OneT16 {
  static constexpr Entries kEntries = kT16;

  template <int chunks, typename Order>
  static void look_up(const TileCodes<Order>& codes, int64_t bits, int64_t tiles, const uint8_t* tables, Merged* merged) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t plane = 0; plane < bits; ++plane) {
        keep_in_memory(tables);
        *merged++ = look_up_block<chunks>(
            OneLineTwoTables<FromCodes<Order>>{codes.at(tile, plane), tables, tables + kVectorTables, kT16.table_bytes});
      }
    }
  }

  // Not inlined: compilers would keep its constants in registers during the look-ups, which need all of them.
  __attribute__((noinline)) static void add(const TileBlock& b, const Merged* merged, float* outputs) {
    for (int64_t tile = 0; tile < b.count; ++tile) {
      Sixteen y = load(outputs + tile * kTileRows);
      for (int64_t plane = 0; plane < b.p.bits; ++plane) {
        add_scaled(y, b.alpha(tile, plane), b.scale(), sums_of_16_bits(*merged++, b.block.chunks));
      }
      b.end(tile, y, outputs);
    }
  }
};

// 8-bit entries: a tree for each of two tiles. An odd last one is computed twice.
struct OneT8 {
  static constexpr Entries kEntries = kT8;

  template <int chunks, typename Order>
  static void look_up(const TileCodes<Order>& codes, int64_t bits, int64_t tiles, const uint8_t* tables, Merged* merged) {
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      const int64_t other = tile + 1 < tiles ? tile + 1 : tile;
      for (int64_t plane = 0; plane < bits; ++plane) {
        keep_in_memory(tables);
        *merged++ = look_up_block<chunks>(
            TwoLinesOneTable<FromCodes<Order>>{codes.at(tile, plane), codes.at(other, plane), tables, kT8.table_bytes});
      }
    }
  }

  __attribute__((noinline)) static void add(const TileBlock& b, const Merged* merged, float* outputs) {
    const float scale = b.scale() * kOver65536;
    for (int64_t tile = 0; tile < b.count; tile += 2) {
      const int64_t other = tile + 1 < b.count ? tile + 1 : tile;
      Sixteen first = load(outputs + tile * kTileRows);
      Sixteen second = load(outputs + other * kTileRows);
      for (int64_t plane = 0; plane < b.p.bits; ++plane) {
        const WordSums words = word_sums(*merged++);
        const WordSums sums = {without_bias(words.front, b.block.chunks), without_bias(words.back, b.block.chunks)};
        add_scaled(first, b.alpha(tile, plane), scale, sums_of_8_bits(stream_a(sums)));
        add_scaled(second, b.alpha(other, plane), scale, sums_of_8_bits(stream_b(sums)));
      }
      b.end(tile, first, outputs);
      b.end(other, second, outputs);
    }
  }
};

template <typename Method, typename Order>
void tiles_for_one(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row, int64_t tile, int64_t count,
                   float* y) {
  for (int64_t i = 0; i < count; ++i) store(y + i * kTileRows, Sixteen{});
  for_each_block(plan, [&](const LookupBlock& block) {
    const TileCodes<Order> codes = tile_codes<Order>(p, plan, block, tile, count);
    const uint8_t* tables = first_table(plan, row, block);
    Merged merged[kTilesAtOnce * kMaxBits];
    switch (block.chunks) {
      case 4: Method::template look_up<4>(codes, p.bits, count, tables, merged); break;
      case 3: Method::template look_up<3>(codes, p.bits, count, tables, merged); break;
      case 2: Method::template look_up<2>(codes, p.bits, count, tables, merged); break;
      default: Method::template look_up<1>(codes, p.bits, count, tables, merged);
    }
    Method::add({p, row, block, tile * plan.groups + block.group, plan.groups, count}, merged, y);
  });
}

template <typename Method, typename Order>
void run_one(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t begin_tile, int64_t end_tile) {
  alignas(64) float y[kTilesAtOnce * kTileRows];
  for (int64_t tile = begin_tile; tile < end_tile; tile += kTilesAtOnce) {
    const int64_t count = end_tile - tile < kTilesAtOnce ? end_tile - tile : kTilesAtOnce;
    tiles_for_one<Method, Order>(p, plan, set.rows[0], tile, count, y);
    for (int64_t i = 0; i < count; ++i) store_tile(p, set.numbers[0], tile + i, y + i * kTileRows, *set.rows[0].out);
  }
}

}  // namespace
}  // namespace bcq
