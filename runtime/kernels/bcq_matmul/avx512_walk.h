// SPDX-License-Identifier: Apache-2.0
// The walk of the AVX-512 look-ups over tiles, rows of A and blocks.
//
// The tables of one row of A fill the first-level cache at K = 4096 (T16). So a panel of blocks whose tables take half
// of that cache passes over some tiles before the next panel comes, while the outputs of these tiles wait in memory.
#pragma once

#include "kernels/bcq_matmul/avx512_lookups.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int64_t kTilesAtOnce = 8;
constexpr size_t kPanelBytes = 16 * 1024;  // of tables
constexpr int64_t kLeastAhead = 4096 / sizeof(uint32_t);

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Consecutive blocks, and how far ahead (in words) the codes lie that are needed after them.
struct Panel {
  LookupBlock first;
  int64_t blocks;
  int64_t ahead;
};

inline int64_t blocks_in(const LookupPlan& plan) {
  const int64_t last = plan.chunks - (plan.groups - 1) * plan.group_chunks;
  return (plan.groups - 1) * plan.blocks_per_group + (last + kBlockChunks - 1) / kBlockChunks;
}

inline LookupBlock block_from(const LookupPlan& plan, int64_t number, int64_t group, int64_t first_chunk) {
  const int64_t end = smaller((group + 1) * plan.group_chunks, plan.chunks);
  return {number, group, first_chunk, smaller(end - first_chunk, kBlockChunks)};
}

inline LookupBlock block_at(const LookupPlan& plan, int64_t number) {
  const int64_t group = number / plan.blocks_per_group;
  const int64_t chunk = group * plan.group_chunks + number % plan.blocks_per_group * kBlockChunks;
  return block_from(plan, number, group, chunk);
}

inline LookupBlock next_block(const LookupPlan& plan, const LookupBlock& block) {
  const int64_t chunk = block.first_chunk + block.chunks;
  const bool group_ends = chunk == (block.group + 1) * plan.group_chunks;
  return block_from(plan, block.number + 1, block.group + group_ends, chunk);
}

// One panel of one tile; y[rows][16] are the outputs so far. known_bits: q, or 0 for any.
template <typename Method, int rows, int known_bits>
__attribute__((noinline)) void add_panel(const MatMulProblem& p, const LookupPlan& plan, const Rows& a,
                                         const Panel& panel, int64_t tile, float* outputs) {
  constexpr int most = 8 / rows < 4 ? 8 / rows : 4;
  const int64_t bits = known_bits > 0 ? known_bits : p.bits;
  __m512 y[rows];
  for (int r = 0; r < rows; ++r) y[r] = _mm512_load_ps(outputs + r * kTileRows);
  LookupBlock block = panel.first;
  const uint32_t* line = first_line(p, plan, block, tile);
  int64_t left = panel.blocks;
  do {
    const int64_t cell = tile * plan.groups + block.group;
    add_block<Method, rows, most>(p, a, block, cell, 0, bits, line, panel.ahead, y);
    if (p.offset) add_offset<rows>(p, a, block, cell, y);
    line += block.chunks * bits * kTileRows;
    block = next_block(plan, block);
  } while (--left > 0);
  for (int r = 0; r < rows; ++r) _mm512_store_ps(outputs + r * kTileRows, y[r]);
}

using AddPanel = void (*)(const MatMulProblem&, const LookupPlan&, const Rows&, const Panel&, int64_t, float*);

// For one row of A all planes of a block are written out.
template <typename Method, int rows>
AddPanel add_panel_for(int64_t bits) {
  if (rows > 1) return add_panel<Method, rows, 0>;
  constexpr AddPanel known[] = {add_panel<Method, 1, 1>, add_panel<Method, 1, 2>, add_panel<Method, 1, 3>,
                                add_panel<Method, 1, 4>, add_panel<Method, 1, 5>, add_panel<Method, 1, 6>,
                                add_panel<Method, 1, 7>, add_panel<Method, 1, 8>};
  return known[bits - 1];
}

// How many blocks a panel has: at least one.
inline int64_t panel_room(const LookupPlan& plan, int rows) {
  const int64_t chunks = int64_t(kPanelBytes / (plan.table_bytes * size_t(rows)));
  const int64_t room = chunks / smaller(plan.group_chunks, kBlockChunks);
  return room > 0 ? room : 1;
}

// Where the codes lie that come after a panel of one tile: in the next tile, or in the next panel of the first tile.
inline int64_t words_ahead(const MatMulProblem& p, const LookupPlan& plan, const Panel& panel, int64_t tiles_left,
                           int64_t tiles) {
  const int64_t chunk_words = p.bits * kTileRows;
  const int64_t tile_words = plan.chunks * chunk_words;
  const bool last_panel = panel.first.number + panel.blocks == blocks_in(plan);
  if (panel.first.number == 0 && last_panel) return tile_words > kLeastAhead ? tile_words : kLeastAhead;
  if (tiles_left > 1) return tile_words;
  const int64_t end = last_panel ? plan.chunks : block_at(plan, panel.first.number + panel.blocks).first_chunk;
  return (end - panel.first.first_chunk) * chunk_words - (last_panel ? 0 : (tiles - 1) * tile_words);
}

// Some rows of A from number m on, and up to kTilesAtOnce tiles.
template <typename Method, int rows>
void compute_rows(const MatMulProblem& p, const LookupPlan& plan, const Rows& a, int64_t m, int64_t begin_tile,
                  int64_t end_tile) {
  constexpr int64_t size = rows * kTileRows;
  alignas(64) float y[kTilesAtOnce * size] = {};
  const int64_t blocks = blocks_in(plan);
  const int64_t room = panel_room(plan, rows);
  const AddPanel add_panel_of = add_panel_for<Method, rows>(p.bits);
  for (int64_t number = 0; number < blocks; number += room) {
    Panel panel = {block_at(plan, number), smaller(room, blocks - number), 0};
    for (int64_t tile = begin_tile; tile < end_tile; ++tile) {
      panel.ahead = words_ahead(p, plan, panel, end_tile - tile, end_tile - begin_tile);
      add_panel_of(p, plan, a, panel, tile, y + (tile - begin_tile) * size);
    }
  }
  for (int64_t tile = begin_tile; tile < end_tile; ++tile) {
    for (int64_t r = 0; r < rows; ++r) {
      store_tile(p, m + r, tile, y + (tile - begin_tile) * size + r * kTileRows, a.out(int(r)));
    }
  }
}

// Returns how many rows of A it has computed, from row m on.
template <typename Method>
int64_t compute_some(const MatMulProblem& p, const LookupPlan& plan, const void* scratch, int64_t m,
                     int64_t begin_tile, int64_t end_tile) {
  const int64_t count = p.M - m;
  const Rows a = {lookup_row(plan, scratch, m), plan.row_bytes};
  if (count >= 8) return compute_rows<Method, 8>(p, plan, a, m, begin_tile, end_tile), 8;
  if (count >= 4) return compute_rows<Method, 4>(p, plan, a, m, begin_tile, end_tile), 4;
  if (count >= 2) return compute_rows<Method, 2>(p, plan, a, m, begin_tile, end_tile), 2;
  return compute_rows<Method, 1>(p, plan, a, m, begin_tile, end_tile), 1;
}

template <typename Method>
void prepare(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const LookupPlan plan = lookup_plan(p, Method::kEntries);
  for (int64_t m = begin_row; m < end_row; ++m) {
    prepare_row(p, plan, scratch, m, Method::kEntries.range, Method::write_chunk);
  }
}

template <typename Method>
void run(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  const LookupPlan plan = lookup_plan(p, Method::kEntries);
  for (int64_t tile = begin_tile; tile < end_tile; tile += kTilesAtOnce) {
    const int64_t end = smaller(tile + kTilesAtOnce, end_tile);
    for (int64_t m = 0; m < p.M;) m += compute_some<Method>(p, plan, scratch, m, tile, end);
  }
}

}  // namespace
}  // namespace bcq
