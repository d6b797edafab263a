// SPDX-License-Identifier: Apache-2.0
// AVX2 look-ups for one row of A. A tile's codes are read from end to end, so that they stream from memory; the sums of
// some blocks are taken together, so that the long chains of instructions that end them overlap.
#pragma once

#include "kernels/bcq_matmul/avx2_outputs.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int64_t kPlanesAtOnce = 8;  // whose sums are taken together; also the most bits
constexpr int64_t kWordsAhead = 1024;  // of the codes to prefetch: 4 KB, what a thread needs to stream from memory

// Blocks of one row of A whose look-ups are done.
struct Pending {
  Merged merged[kPlanesAtOnce];
  LookupBlock blocks[kPlanesAtOnce];
  int64_t count;
};

// 16-bit entries: a tree of low and one of high bytes for each plane.
struct OneT16 {
  static constexpr Entries kEntries = kT16;
  static constexpr int64_t kTiles = 1;

  template <int chunks, typename Order>
  static Merged look_up(const FromCodes<Order>& codes, int64_t, const uint8_t* tables) {
    return look_up_block<chunks>(
        OneLineTwoTables<FromCodes<Order>>{codes, tables, tables + kVectorTables, kT16.table_bytes});
  }

  // Not inlined: compilers would keep its constants in registers during the look-ups, which need all of them.
  __attribute__((noinline)) static void add(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row,
                                            int64_t tile, int64_t, const Pending& pending, float* outputs) {
    const Merged* merged = pending.merged;
    Sixteen y = load(outputs);
    for (const LookupBlock* block = pending.blocks; block < pending.blocks + pending.count; ++block) {
      const int64_t cell = tile * plan.groups + block->group;
      for (int64_t plane = 0; plane < p.bits; ++plane, ++merged) {
        add_scaled(y, sixteen_halves(plane_alpha(p, cell, plane)), row.scale[block->number],
                   sums_of_16_bits(*merged, block->chunks));
      }
      if (p.offset) add_offset(y, sixteen_halves(p.offset + cell * kTileRows), row.sum[block->number]);
    }
    store(outputs, y);
  }
};

// 8-bit entries: a tree for each of two tiles. An odd last one is computed twice.
struct OneT8 {
  static constexpr Entries kEntries = kT8;
  static constexpr int64_t kTiles = 2;

  template <int chunks, typename Order>
  static Merged look_up(const FromCodes<Order>& codes, int64_t to_other, const uint8_t* tables) {
    const FromCodes<Order> other = {codes.first + to_other, codes.stride, codes.next + to_other};
    return look_up_block<chunks>(TwoLinesOneTable<FromCodes<Order>>{codes, other, tables, kT8.table_bytes});
  }

  __attribute__((noinline)) static void add(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row,
                                            int64_t tile, int64_t tiles, const Pending& pending, float* outputs) {
    const int64_t other = (tiles - 1) * plan.groups;  // cells from a tile to the other
    float* outputs_b = outputs + (tiles - 1) * kTileRows;
    const Merged* merged = pending.merged;
    Sixteen a = load(outputs);
    Sixteen b = load(outputs_b);
    for (const LookupBlock* block = pending.blocks; block < pending.blocks + pending.count; ++block) {
      const int64_t cell = tile * plan.groups + block->group;
      const float scale = row.scale[block->number] * kOver65536;
      for (int64_t plane = 0; plane < p.bits; ++plane, ++merged) {
        const WordSums sums = without_bias(word_sums(*merged), block->chunks);
        add_scaled(a, sixteen_halves(plane_alpha(p, cell, plane)), scale, sums_of_8_bits(stream_a(sums)));
        add_scaled(b, sixteen_halves(plane_alpha(p, cell + other, plane)), scale, sums_of_8_bits(stream_b(sums)));
      }
      if (p.offset) add_offset(a, sixteen_halves(p.offset + cell * kTileRows), row.sum[block->number]);
      if (p.offset) add_offset(b, sixteen_halves(p.offset + (cell + other) * kTileRows), row.sum[block->number]);
    }
    store(outputs, a);
    store(outputs_b, b);
  }
};

// The look-ups of all planes of a block. Plane by plane, the next lines are prefetched in the order in which they lie.
template <typename Method, int chunks, typename Order>
inline void look_up_planes(const MatMulProblem& p, const uint32_t* line, int64_t to_other, const uint8_t* tables,
                           Merged* merged) {
  constexpr bool gaps = std::is_same_v<Order, GappedOrder>;
  const int64_t stride = (gaps ? p.planes : p.bits) * kTileRows;
  FromCodes<Order> codes = {line, stride, line + (gaps ? kWordsAhead / stride * stride : kWordsAhead)};
  for (const Merged* end = merged + p.bits; merged < end; ++merged) {
    keep_in_memory(tables);
    *merged = Method::template look_up<chunks>(codes, to_other, tables);
    codes.first += kTileRows;
    codes.next += (gaps ? 1 : chunks) * kTileRows;
  }
}

template <typename Method, typename Order>
void tiles_for_one(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row, int64_t tile, int64_t tiles,
                   float* y) {
  const int64_t to_other = (tiles - 1) * plan.chunks * p.planes * kTileRows;
  const int64_t room = kPlanesAtOnce / p.bits;
  for (int64_t i = 0; i < tiles; ++i) store(y + i * kTileRows, Sixteen{});
  Pending pending;
  pending.count = 0;
  for_each_block(plan, [&](const LookupBlock& block) {
    const uint32_t* line = first_line(p, plan, block, tile);
    const uint8_t* tables = first_table(plan, row, block);
    Merged* merged = pending.merged + pending.count * p.bits;
    switch (block.chunks) {
      case 4: look_up_planes<Method, 4, Order>(p, line, to_other, tables, merged); break;
      case 3: look_up_planes<Method, 3, Order>(p, line, to_other, tables, merged); break;
      case 2: look_up_planes<Method, 2, Order>(p, line, to_other, tables, merged); break;
      default: look_up_planes<Method, 1, Order>(p, line, to_other, tables, merged);
    }
    pending.blocks[pending.count++] = block;
    if (pending.count < room) return;
    Method::add(p, plan, row, tile, tiles, pending, y);
    pending.count = 0;
  });
  Method::add(p, plan, row, tile, tiles, pending, y);
}

template <typename Method, typename Order>
void run_one(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t begin_tile, int64_t end_tile) {
  alignas(64) float y[Method::kTiles * kTileRows];
  for (int64_t tile = begin_tile; tile < end_tile; tile += Method::kTiles) {
    const int64_t tiles = end_tile - tile < Method::kTiles ? end_tile - tile : Method::kTiles;
    tiles_for_one<Method, Order>(p, plan, set.rows[0], tile, tiles, y);
    for (int64_t i = 0; i < tiles; ++i) store_tile(p, set.numbers[0], tile + i, y + i * kTileRows, *set.rows[0].out);
  }
}

}  // namespace
}  // namespace bcq
