// SPDX-License-Identifier: Apache-2.0
// AVX2 look-ups for several rows of A, which share the indexes. Each row sees the same arithmetic as alone.
//
// Tiles go in pairs: a vector of tables is loaded once and read with the indexes of both, which vpshufb takes from
// memory. One block of up to sixteen rows passes over a panel of tiles before the next block comes: its tables (1 KB a
// row for T16) stay in the first-level cache meanwhile, while the outputs of the panel wait in memory.
#pragma once

#include "kernels/bcq_matmul/avx2_pairs.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int64_t kPanelPairs = 8;
// Up to so many rows of A, tables are few: then one pair of tiles comes after the other and its codes stream.
constexpr int64_t kFewRows = 8;

// What the rows of a set have of one block.
struct RowBlocks {
  const uint8_t* tables[kRowsAtOnce];
  float scales[kRowsAtOnce];
  float sums[kRowsAtOnce];
  int64_t count;
};

inline RowBlocks row_blocks(const LookupPlan& plan, const RowSet& set, const LookupBlock& block) {
  RowBlocks rows;
  rows.count = set.count;
  for (int64_t i = 0; i < set.count; ++i) {
    rows.tables[i] = first_table(plan, set.rows[i], block);
    rows.scales[i] = set.rows[i].scale[block.number];
    rows.sums[i] = set.rows[i].sum[block.number];
  }
  return rows;
}

// Sums of a block and plane for all rows of a set.
template <typename Method>
struct Trees {
  Merged of[Method::kTrees][kRowsAtOnce];
};

// Not inlined, nor is the next one: each needs all registers for its own vectors.
template <size_t table_bytes, int chunks>
__attribute__((noinline)) void look_up_rows(const PairIndexes* indexes, const RowBlocks& rows, size_t offset,
                                            Merged* to) {
  for (int64_t i = 0; i < rows.count; ++i) {
    to[i] = look_up_block<chunks>(PairStreams<table_bytes>{indexes, rows.tables[i] + offset});
  }
}

template <typename Method>
__attribute__((noinline)) void add_rows(const Trees<Method>& trees, int64_t chunks, const RowBlocks& rows,
                                        const PairFloats& alpha, PairFloats* y) {
  const Merged* last = trees.of[Method::kTrees - 1];
  for (int64_t i = 0; i < rows.count; ++i) {
    y[i] = add_scaled(Method{}, y[i], alpha, rows.scales[i], trees.of[0][i], last[i], chunks);
  }
}

inline void add_offsets(const RowBlocks& rows, const PairFloats& offset, PairFloats* y) {
  for (int64_t i = 0; i < rows.count; ++i) {
    for (int v = 0; v < 4; ++v) {
      y[i].rows[v] = _mm256_fmadd_ps(offset.rows[v], _mm256_set1_ps(rows.sums[i]), y[i].rows[v]);
    }
  }
}

template <typename Method, typename Order, int chunks>
void add_pair(const MatMulProblem& p, const LookupPlan& plan, const LookupBlock& block, const RowBlocks& rows,
              const TilePair& tiles, int64_t ahead, PairFloats* y) {
  const int64_t words = p.planes * kTileRows;
  const uint32_t* a = first_line(p, plan, block, tiles.a);
  const uint32_t* b = first_line(p, plan, block, tiles.b);
  for (int64_t plane = 0; plane < p.bits; ++plane, a += kTileRows, b += kTileRows) {
    PairIndexes indexes[chunks];
    for (int c = 0; c < chunks; ++c) indexes[c] = pair_indexes<Order>(a + c * words, b + c * words, ahead);
    Trees<Method> trees;
    for (int t = 0; t < Method::kTrees; ++t) {
      look_up_rows<Method::kEntries.table_bytes, chunks>(indexes, rows, size_t(t) * kVectorTables, trees.of[t]);
    }
    const PairFloats alpha = pair_halves(plane_alpha(p, tiles.a * plan.groups + block.group, plane),
                                         plane_alpha(p, tiles.b * plan.groups + block.group, plane));
    add_rows<Method>(trees, chunks, rows, alpha, y);
  }
  if (p.offset) {
    add_offsets(rows,
                pair_halves(p.offset + (tiles.a * plan.groups + block.group) * kTileRows,
                            p.offset + (tiles.b * plan.groups + block.group) * kTileRows),
                y);
  }
}

// The tiles [begin, end), in pairs; an odd last one is its own partner.
struct Panel {
  int64_t begin;
  int64_t end;
  int64_t pairs() const { return (end - begin + 1) / 2; }
  TilePair pair(int64_t i) const {
    const int64_t tile = begin + 2 * i;
    return {tile, tile + 1 < end ? tile + 1 : tile};
  }
};

// How far ahead (in words) the codes lie that come after a pair: those of the next pair, and after the last one the
// next block of the first pair, or the first block of the next panel.
inline int64_t words_to_next_pair(const MatMulProblem& p, const LookupPlan& plan, const LookupBlock& block,
                                  const Panel& panel, int64_t pair) {
  const int64_t words = p.planes * kTileRows;
  const int64_t next_pair = 2 * plan.chunks * words;
  if (pair + 1 < panel.pairs()) return next_pair;
  if (block.first_chunk + block.chunks == plan.chunks) return next_pair - block.first_chunk * words;
  return block.chunks * words - (panel.pairs() - 1) * next_pair;
}

template <typename Method, typename Order, int chunks>
void add_block(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, const LookupBlock& block,
               const Panel& panel, PairFloats* y) {
  const RowBlocks rows = row_blocks(plan, set, block);
  for (int64_t i = 0; i < panel.pairs(); ++i) {
    const int64_t ahead = words_to_next_pair(p, plan, block, panel, i);
    add_pair<Method, Order, chunks>(p, plan, block, rows, panel.pair(i), ahead, y + i * kRowsAtOnce);
  }
}

inline void store_panel(const MatMulProblem& p, const RowSet& set, const Panel& panel, const PairFloats* y) {
  for (int64_t i = 0; i < panel.pairs(); ++i) {
    const TilePair tiles = panel.pair(i);
    for (int64_t r = 0; r < set.count; ++r) {
      alignas(32) float rows[2 * kTileRows];
      in_natural_order(y[i * kRowsAtOnce + r], rows);
      store_tile(p, set.numbers[r], tiles.a, rows, *set.rows[r].out);
      if (tiles.b != tiles.a) store_tile(p, set.numbers[r], tiles.b, rows + kTileRows, *set.rows[r].out);
    }
  }
}

template <typename Method, typename Order>
void run_panel(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, const Panel& panel) {
  PairFloats y[kPanelPairs * kRowsAtOnce];
  for (int64_t i = 0; i < panel.pairs() * kRowsAtOnce; ++i) y[i] = PairFloats{};
  for_each_block(plan, [&](const LookupBlock& block) {
    switch (block.chunks) {
      case 4: return add_block<Method, Order, 4>(p, plan, set, block, panel, y);
      case 3: return add_block<Method, Order, 3>(p, plan, set, block, panel, y);
      case 2: return add_block<Method, Order, 2>(p, plan, set, block, panel, y);
      default: return add_block<Method, Order, 1>(p, plan, set, block, panel, y);
    }
  });
  store_panel(p, set, panel, y);
}

template <typename Method, typename Order>
void run_many(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t begin_tile, int64_t end_tile) {
  const int64_t at_once = set.count <= kFewRows ? 2 : 2 * kPanelPairs;
  for (int64_t begin = begin_tile; begin < end_tile; begin += at_once) {
    const int64_t end = end_tile - begin < at_once ? end_tile : begin + at_once;
    run_panel<Method, Order>(p, plan, set, {begin, end});
  }
}

}  // namespace
}  // namespace bcq
