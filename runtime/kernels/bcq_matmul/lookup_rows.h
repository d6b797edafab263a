// SPDX-License-Identifier: Apache-2.0
// The walk over rows of A and row tiles that the x86 look-up kernels share; an ISA adds how one tile is computed.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/bcq_matmul/t16_exact.h"
#include "kernels/bcq_matmul/lookup_plan.h"

namespace bcq {
namespace {

constexpr int64_t kRowsAtOnce = 16;  // rows of A that share one pass over a tile

// Rows of A that go through tables, and their numbers.
struct RowSet {
  LookupRow rows[kRowsAtOnce];
  int64_t numbers[kRowsAtOnce];
  int64_t count;
};

// Writes the outputs of one row of A and one tile; y holds sixteen values, and only those below N are stored.
inline void store_tile(const MatMulProblem& p, int64_t m, int64_t tile, const float* y) {
  const int64_t first = tile * kTileRows;
  const size_t count = size_t(p.N - first < kTileRows ? p.N - first : kTileRows);
  const int64_t at = m * p.y_stride + first;
  if (!p.a_is_half) {
    std::memcpy(static_cast<float*>(p.y) + at, y, count * sizeof(float));
    return;
  }
  alignas(16) uint16_t halves[kTileRows];
  for (int i = 0; i < kTileRows; i += 8) {
    const __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(y + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_store_si128(reinterpret_cast<__m128i*>(halves + i), eight);
  }
  std::memcpy(static_cast<uint16_t*>(p.y) + at, halves, count * sizeof(uint16_t));
}

inline void run_exact(const MatMulProblem& p, const LookupPlan& plan, int64_t m, int64_t begin_tile, int64_t end_tile,
                      RestoreLine restore = nullptr) {
  for (int64_t tile = begin_tile; tile < end_tile; ++tile) {
    float y[kTileRows];
    exact_tile(p, plan, m, tile, restore, y);
    store_tile(p, m, tile, y);
  }
}

// compute_tile(const RowSet&, int64_t tile, float* y) writes y[count][16].
template <typename ComputeTile>
inline void run_set(const MatMulProblem& p, const RowSet& set, int64_t begin_tile, int64_t end_tile,
                    ComputeTile compute_tile) {
  alignas(64) float y[kRowsAtOnce * kTileRows];
  for (int64_t tile = begin_tile; tile < end_tile && set.count > 0; ++tile) {
    compute_tile(set, tile, y);
    for (int64_t i = 0; i < set.count; ++i) store_tile(p, set.numbers[i], tile, y + i * kTileRows);
  }
}

// Computes the rows of A that tables do not hold, and calls visit(RowSet) for the others, up to kRowsAtOnce at once.
template <typename Visit>
inline void for_each_set(const MatMulProblem& p, const LookupPlan& plan, const void* scratch, int64_t begin_tile,
                         int64_t end_tile, RestoreLine restore, Visit visit) {
  RowSet set;
  set.count = 0;
  for (int64_t m = 0; m < p.M; ++m) {
    const LookupRow row = lookup_row(plan, scratch, m);
    if (*row.out_of_range) {
      run_exact(p, plan, m, begin_tile, end_tile, restore);
      continue;
    }
    set.rows[set.count] = row;
    set.numbers[set.count++] = m;
    if (set.count < kRowsAtOnce) continue;
    visit(set);
    set.count = 0;
  }
  if (set.count > 0) visit(set);
}

template <typename ComputeTile>
inline void run_lookups(const MatMulProblem& p, const LookupPlan& plan, const void* scratch, int64_t begin_tile,
                        int64_t end_tile, ComputeTile compute_tile) {
  for_each_set(p, plan, scratch, begin_tile, end_tile, nullptr,
               [&](const RowSet& set) { run_set(p, set, begin_tile, end_tile, compute_tile); });
}

// Where a block's codes begin, and its tables.
inline const uint32_t* first_line(const MatMulProblem& p, const LookupPlan& plan, const LookupBlock& block, int64_t tile) {
  return p.codes + (tile * plan.chunks + block.first_chunk) * p.bits * kTileRows;
}

inline const uint8_t* first_table(const LookupPlan& plan, const LookupRow& row, const LookupBlock& block) {
  return row.tables + size_t(block.first_chunk) * plan.table_bytes;
}

}  // namespace
}  // namespace bcq
