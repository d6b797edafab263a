// SPDX-License-Identifier: Apache-2.0
// The walk over rows of A and row tiles that the x86 look-up kernels share; an ISA adds how one tile is computed.
#pragma once

#include "kernels/bcq_matmul/lookup_plan.h"
#include "kernels/bcq_matmul/isa_rows.h"

namespace bcq {
namespace {

constexpr int64_t kRowsAtOnce = 16;  // rows of A that share one pass over a tile

// Rows of A that go through tables, and their numbers.
struct RowSet {
  LookupRow rows[kRowsAtOnce];
  int64_t numbers[kRowsAtOnce];
  int64_t count;
};

// Calls visit(RowSet) for the rows of A, up to kRowsAtOnce at once.
template <typename Visit>
inline void for_each_set(const MatMulProblem& p, const LookupPlan& plan, const void* scratch, Visit visit) {
  for (int64_t m = 0; m < p.M;) {
    RowSet set;
    for (set.count = 0; set.count < kRowsAtOnce && m < p.M; ++set.count, ++m) {
      set.rows[set.count] = lookup_row(plan, scratch, m);
      set.numbers[set.count] = m;
    }
    visit(set);
  }
}

// Where a block's codes begin, and its tables.
inline const uint32_t* first_line(const MatMulProblem& p, const LookupPlan& plan, const LookupBlock& block, int64_t tile) {
  return p.codes + (tile * plan.chunks + block.first_chunk) * p.planes * kTileRows;
}

inline const uint8_t* first_table(const LookupPlan& plan, const LookupRow& row, const LookupBlock& block) {
  return row.tables + size_t(block.first_chunk) * plan.table_bytes;
}

}  // namespace
}  // namespace bcq
