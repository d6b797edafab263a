// SPDX-License-Identifier: Apache-2.0
// The walk of the AVX-512 look-ups over blocks, tiles and rows of A.
//
// One row of A takes one tile after the other, so that its codes are one long stream. For several rows, which compute
// longer than memory takes, a block passes over some tiles before the next block comes: its tables stay in the
// first-level cache meanwhile, and the outputs of these tiles wait there.
#pragma once

#include "kernels/bcq_matmul/avx512_lookups.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int64_t kTilesForOne = 1;
constexpr int64_t kTilesForMany = 16;
constexpr int64_t kWordsAhead = 6144 / sizeof(uint32_t);      // of codes to prefetch, where they are one stream
constexpr int64_t kTileWordsAhead = 2048 / sizeof(uint32_t);  // of each tile, where tiles take turns

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline LookupBlock block_from(const LookupPlan& plan, int64_t number, int64_t group, int64_t first_chunk) {
  const int64_t end = smaller((group + 1) * plan.group_chunks, plan.chunks);
  return {number, group, first_chunk, smaller(end - first_chunk, kBlockChunks)};
}

inline LookupBlock next_block(const LookupPlan& plan, const LookupBlock& block) {
  const int64_t chunk = block.first_chunk + block.chunks;
  const bool group_ends = chunk == (block.group + 1) * plan.group_chunks;
  return block_from(plan, block.number + 1, block.group + group_ends, chunk);
}

struct Tiles {
  int64_t first;
  int64_t count;
};

// So far ahead that whole chunks lie between: with gaps, every line then prefetches one that will be read.
inline int64_t whole_chunks(int64_t words, int64_t chunk_words) {
  return (words + chunk_words - 1) / chunk_words * chunk_words;
}

// At the end of a tile's codes, what is needed next lies in the tile as many tiles behind.
inline int64_t words_ahead(const LookupPlan& plan, const LookupBlock& block, int64_t chunk_words, int64_t tiles) {
  if (tiles == 1) return kWordsAhead;
  const bool in_tile = (plan.chunks - block.first_chunk) * chunk_words > kTileWordsAhead;
  return in_tile ? kTileWordsAhead : kTileWordsAhead + (tiles - 1) * plan.chunks * chunk_words;
}

// Some rows of A and some tiles, outputs[tile][rows][16]. known_bits: q, or 0 for any. gaps: codes hold more planes.
template <typename Method, int rows, int known_bits, bool gaps>
__attribute__((noinline)) void add_tiles(const MatMulProblem& p, const LookupPlan& plan, const Rows& a,
                                         const Tiles& tiles, float* outputs) {
  constexpr int most = 8 / rows < 4 ? 8 / rows : 4;
  const int64_t bits = known_bits > 0 ? known_bits : p.bits;
  const int64_t chunk_words = (gaps ? p.planes : bits) * kTileRows;
  for (LookupBlock block = block_from(plan, 0, 0, 0); block.chunks > 0; block = next_block(plan, block)) {
    int64_t ahead = words_ahead(plan, block, chunk_words, tiles.count);
    if (gaps) ahead = whole_chunks(ahead, chunk_words);
    const uint32_t* line = first_line(p, plan, block, tiles.first);
    float* at = outputs;
    int64_t cell = tiles.first * plan.groups + block.group;
    for (int64_t left = tiles.count; left > 0; --left, at += rows * kTileRows, cell += plan.groups) {
      __m512 y[rows];
      for (int r = 0; r < rows; ++r) y[r] = _mm512_load_ps(at + r * kTileRows);
      add_block<Method, rows, most>(p, a, block, cell, 0, bits, chunk_words, line, ahead, y);
      if (p.offset) add_offset<rows>(p, a, block, cell, y);
      for (int r = 0; r < rows; ++r) _mm512_store_ps(at + r * kTileRows, y[r]);
      line += plan.chunks * chunk_words;
    }
  }
}

using AddTiles = void (*)(const MatMulProblem&, const LookupPlan&, const Rows&, const Tiles&, float*);

// For one row of A and up to four planes, all planes of a block are written out.
template <typename Method, int rows, bool gaps>
AddTiles add_tiles_for(int64_t bits) {
  if (rows > 1 || bits > 4) return add_tiles<Method, rows, 0, gaps>;
  constexpr AddTiles known[] = {add_tiles<Method, 1, 1, gaps>, add_tiles<Method, 1, 2, gaps>,
                                add_tiles<Method, 1, 3, gaps>, add_tiles<Method, 1, 4, gaps>};
  return known[bits - 1];
}

// Some rows of A from number m on, and up to kTilesForMany tiles.
template <typename Method, int rows>
int64_t compute_rows(const MatMulProblem& p, const LookupPlan& plan, const Rows& a, int64_t m, const Tiles& tiles) {
  alignas(64) float outputs[kTilesForMany * rows * kTileRows] = {};
  const AddTiles add = p.planes > p.bits ? add_tiles_for<Method, rows, true>(p.bits)
                                         : add_tiles_for<Method, rows, false>(p.bits);
  add(p, plan, a, tiles, outputs);
  const float* y = outputs;
  for (int64_t tile = tiles.first; tile < tiles.first + tiles.count; ++tile) {
    for (int64_t r = 0; r < rows; ++r, y += kTileRows) store_tile(p, m + r, tile, y, a.out(int(r)));
  }
  return rows;
}

// Returns how many rows of A it has computed, from row m on.
template <typename Method>
int64_t compute_some(const MatMulProblem& p, const LookupPlan& plan, const void* scratch, int64_t m,
                     const Tiles& tiles) {
  const int64_t count = p.M - m;
  const Rows a = {lookup_row(plan, scratch, m), plan.row_bytes};
  if (count >= 8) return compute_rows<Method, 8>(p, plan, a, m, tiles);
  if (count >= 4) return compute_rows<Method, 4>(p, plan, a, m, tiles);
  if (count >= 2) return compute_rows<Method, 2>(p, plan, a, m, tiles);
  return compute_rows<Method, 1>(p, plan, a, m, tiles);
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
  const int64_t at_once = p.M == 1 ? kTilesForOne : kTilesForMany;
  for (int64_t tile = begin_tile; tile < end_tile; tile += at_once) {
    const Tiles tiles = {tile, smaller(at_once, end_tile - tile)};
    for (int64_t m = 0; m < p.M;) m += compute_some<Method>(p, plan, scratch, m, tiles);
  }
}

}  // namespace
}  // namespace bcq
