// SPDX-License-Identifier: Apache-2.0
// AVX2 look-ups for one row of A. A tile's codes are read from end to end, so that they stream from memory; the sums of
// some blocks are taken together, so that the long chains of instructions that end them overlap.
#pragma once

#include "kernels/bcq_matmul/avx2_outputs.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int64_t kTreesAtOnce = 8;  // whose sums are taken together; also the most bits
constexpr int64_t kWordsAhead = 1024;  // of the codes to prefetch: 4 KB, what a thread needs to stream from memory

// Blocks of one row of A whose look-ups are done.
struct Pending {
  Merged merged[kTreesAtOnce];
  LookupBlock blocks[kTreesAtOnce];
  int64_t count;
};

// Codes that pass once, from end to end: each tree reads its own lines and prefetches as many, those of all planes
// together in the order in which they lie. These are the ones of a plane that is `planes` further on.
template <int chunks, typename Order>
inline FromCodes<Order> further(const FromCodes<Order>& codes, int64_t planes) {
  const int64_t lines = std::is_same_v<Order, GappedOrder> ? 1 : chunks;
  return {codes.first + planes * kTileRows, codes.stride, codes.next + planes * lines * kTileRows};
}

template <typename Order>
inline FromCodes<Order> first_plane(const MatMulProblem& p, const uint32_t* line) {
  constexpr bool gaps = std::is_same_v<Order, GappedOrder>;
  const int64_t stride = (gaps ? p.planes : p.bits) * kTileRows;
  return {line, stride, line + (gaps ? kWordsAhead / stride * stride : kWordsAhead)};
}

// 16-bit entries: a tree of low and one of high bytes for each plane.
struct OneT16 {
  static constexpr Entries kEntries = kT16;
  static int64_t trees(int64_t bits) { return bits; }

  template <int chunks, typename Order>
  static void look_up(int64_t bits, FromCodes<Order> codes, const uint8_t* tables, Merged* merged) {
    for (const Merged* end = merged + bits; merged < end; codes = further<chunks>(codes, 1)) {
      keep_in_memory(tables);
      *merged++ = look_up_block<chunks>(
          OneLineTwoTables<FromCodes<Order>>{codes, tables, tables + kVectorTables, kT16.table_bytes});
    }
  }

  // Not inlined: compilers would keep its constants in registers during the look-ups, which need all of them.
  __attribute__((noinline)) static void add(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row,
                                            int64_t tile, const Pending& pending, float* outputs) {
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

// 8-bit entries: a tree for each of two planes, which share the loads of tables, or for each half of a last odd plane.
struct OneT8 {
  static constexpr Entries kEntries = kT8;
  static int64_t trees(int64_t bits) { return (bits + 1) / 2; }

  template <int chunks, typename Order>
  static void look_up(int64_t bits, FromCodes<Order> codes, const uint8_t* tables, Merged* merged) {
    for (; bits > 1; bits -= 2, codes = further<chunks>(codes, 2)) {
      keep_in_memory(tables);
      *merged++ = look_up_block<chunks>(
          TwoLinesOneTable<FromCodes<Order>>{codes, further<chunks>(codes, 1), tables, kT8.table_bytes});
    }
    if (bits == 0) return;
    keep_in_memory(tables);
    *merged = look_up_block<(chunks + 1) / 2>(Halves<FromCodes<Order>, chunks>{codes, tables, kT8.table_bytes});
  }

  __attribute__((noinline)) static void add(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row,
                                            int64_t tile, const Pending& pending, float* outputs) {
    const Merged* merged = pending.merged;
    Sixteen y = load(outputs);
    for (const LookupBlock* block = pending.blocks; block < pending.blocks + pending.count; ++block) {
      const int64_t cell = tile * plan.groups + block->group;
      const float scale = row.scale[block->number] * kOver65536;
      const auto add_plane = [&](int64_t plane, __m256i words) {
        add_scaled(y, sixteen_halves(plane_alpha(p, cell, plane)), scale,
                   sums_of_8_bits(without_bias(words, block->chunks)));
      };
      int64_t plane = 0;
      for (; plane + 1 < p.bits; plane += 2) {
        const WordSums sums = word_sums(*merged++);
        add_plane(plane, stream_a(sums));
        add_plane(plane + 1, stream_b(sums));
      }
      if (plane < p.bits) add_plane(plane, both_streams(word_sums(*merged++)));
      if (p.offset) add_offset(y, sixteen_halves(p.offset + cell * kTileRows), row.sum[block->number]);
    }
    store(outputs, y);
  }
};

template <typename Method, typename Order>
void tile_for_one(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row, int64_t tile, float* y) {
  const int64_t trees = Method::trees(p.bits);
  const int64_t room = kTreesAtOnce / trees;
  store(y, Sixteen{});
  Pending pending;
  pending.count = 0;
  for_each_block(plan, [&](const LookupBlock& block) {
    const FromCodes<Order> codes = first_plane<Order>(p, first_line(p, plan, block, tile));
    const uint8_t* tables = first_table(plan, row, block);
    Merged* merged = pending.merged + pending.count * trees;
    switch (block.chunks) {
      case 4: Method::template look_up<4>(p.bits, codes, tables, merged); break;
      case 3: Method::template look_up<3>(p.bits, codes, tables, merged); break;
      case 2: Method::template look_up<2>(p.bits, codes, tables, merged); break;
      default: Method::template look_up<1>(p.bits, codes, tables, merged);
    }
    pending.blocks[pending.count++] = block;
    if (pending.count < room) return;
    Method::add(p, plan, row, tile, pending, y);
    pending.count = 0;
  });
  Method::add(p, plan, row, tile, pending, y);
}

template <typename Method, typename Order>
void run_one(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t begin_tile, int64_t end_tile) {
  alignas(64) float y[kTileRows];
  for (int64_t tile = begin_tile; tile < end_tile; ++tile) {
    tile_for_one<Method, Order>(p, plan, set.rows[0], tile, y);
    store_tile(p, set.numbers[0], tile, y, *set.rows[0].out);
  }
}

}  // namespace
}  // namespace bcq
