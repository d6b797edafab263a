// SPDX-License-Identifier: Apache-2.0
// The walk of the NEON look-ups over blocks, tiles and rows of A.
//
// One row of A takes one tile after the other, so that its codes are one long stream. For several rows, which compute
// longer than memory takes, a block passes over some tiles before the next block comes: its tables stay in the
// first-level cache meanwhile, and the outputs of these tiles wait there.
#pragma once

#include "kernels/bcq_matmul/neon_lookups.h"

namespace bcq {
namespace {

constexpr int64_t kTilesForMany = 16;
constexpr int64_t kWordsAhead = 4096 / sizeof(uint32_t);      // of codes to prefetch, where they are one stream
constexpr int64_t kTileWordsAhead = 2048 / sizeof(uint32_t);  // of each tile, where tiles take turns

struct Tiles {
  int64_t first;
  int64_t count;
};

// Some rows of A and some tiles, outputs[tile][rows][16]. known_bits: q, or 0 for any.
template <typename Method, int rows, int known_bits>
__attribute__((noinline)) void add_tiles(const MatMulProblem& p, const LookupPlan& plan, const Rows& a,
                                         const Tiles& tiles, float* outputs) {
  constexpr int most = rows > 1 ? 1 : known_bits > 0 ? known_bits : 4;
  const int64_t bits = known_bits > 0 ? known_bits : p.bits;
  const int64_t step = p.planes * kTileRows;
  const int64_t ahead = tiles.count == 1 ? kWordsAhead : kTileWordsAhead;
  for_each_block(plan, [&](const LookupBlock& block) {
    float* y = outputs;
    for (int64_t tile = tiles.first; tile < tiles.first + tiles.count; ++tile, y += rows * kTileRows) {
      const int64_t cell = tile * plan.groups + block.group;
      add_block<Method, rows, most>(p, a, block, cell, 0, bits, step, first_line(p, plan, block, tile), ahead, y);
      if (p.offset) add_offset<rows>(p, a, block, cell, y);
    }
  });
}

using AddTiles = void (*)(const MatMulProblem&, const LookupPlan&, const Rows&, const Tiles&, float*);

// For one row of A and up to four planes, all planes of a block are written out.
template <typename Method, int rows>
AddTiles add_tiles_for(int64_t bits) {
  if (rows > 1 || bits > 4) return add_tiles<Method, rows, 0>;
  constexpr AddTiles known[] = {add_tiles<Method, 1, 1>, add_tiles<Method, 1, 2>, add_tiles<Method, 1, 3>,
                                add_tiles<Method, 1, 4>};
  return known[bits - 1];
}

// Some rows of A from number m on, and up to kTilesForMany tiles.
template <typename Method, int rows>
int64_t compute_rows(const MatMulProblem& p, const LookupPlan& plan, const Rows& a, int64_t m, const Tiles& tiles) {
  alignas(64) float outputs[kTilesForMany * rows * kTileRows];
  for (int64_t i = 0; i < tiles.count * rows * kTileRows; ++i) outputs[i] = 0.0f;
  add_tiles_for<Method, rows>(p.bits)(p, plan, a, tiles, outputs);
  const float* y = outputs;
  for (int64_t tile = tiles.first; tile < tiles.first + tiles.count; ++tile) {
    for (int64_t r = 0; r < rows; ++r, y += kTileRows) store_tile(p, m + r, tile, y, a.out(int(r)));
  }
  return rows;
}

// Returns how many rows of A it has computed, from row m on: up to kMostSums.
template <typename Method, int rows = Method::kMostSums>
int64_t compute_some(const MatMulProblem& p, const LookupPlan& plan, const void* scratch, int64_t m,
                     const Tiles& tiles) {
  if constexpr (rows > 1) {
    if (p.M - m < rows) return compute_some<Method, rows / 2>(p, plan, scratch, m, tiles);
  }
  return compute_rows<Method, rows>(p, plan, {lookup_row(plan, scratch, m), plan.row_bytes}, m, tiles);
}

template <typename Method>
void prepare(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const LookupPlan plan = lookup_plan(p, Method::kEntries);
  for (int64_t m = begin_row; m < end_row; ++m) {
    prepare_row(p, plan, scratch, m, Method::kEntries.range, Method::write_chunk);
  }
}

template <typename Method>
void run_in_order(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  const LookupPlan plan = lookup_plan(p, Method::kEntries);
  const int64_t at_once = p.M == 1 ? 1 : kTilesForMany;
  for (int64_t tile = begin_tile; tile < end_tile; tile += at_once) {
    const Tiles tiles = {tile, end_tile - tile < at_once ? end_tile - tile : at_once};
    for (int64_t m = 0; m < p.M;) m += compute_some<Method>(p, plan, scratch, m, tiles);
  }
}

template <typename Method>
void run(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
#if !BCQ_ONE_ISA  // the C interface has no resident copies, and a small library has no code for them
  if (p.resident) return run_in_order<Resident<Method>>(p, scratch, begin_tile, end_tile);
#endif
  run_in_order<Method>(p, scratch, begin_tile, end_tile);
}

}  // namespace
}  // namespace bcq
