// SPDX-License-Identifier: Apache-2.0
// What the look-up kernels of all ISAs share: how inputs fall into blocks, and where prepared activations lie in scratch.
//
// A block is up to four chunks (128 inputs) of one group. Every block of a row of A has its own scale s; its look-up
// tables hold, for each quad of four activations, the sixteen signed sums +-a0 +-a1 +-a2 +-a3 as integers round(sum / s)
// of about 16 bits (T16) or 8 bits (T8). A plane's share of the output is alpha * s * (sum of one table entry per quad),
// exact in integers, and y = fma(alpha, s * float(that sum), y) in the order block, plane, offset: so kernels of all
// ISAs give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/bcq_matmul/kernel.h"

namespace bcq {
namespace {

constexpr int64_t kBlockChunks = 4;
constexpr int64_t kQuadsPerChunk = 8;
constexpr size_t kHeaderBytes = 64;

// An entry width of a method: tables take table_bytes a chunk (8 quads x 16 entries), entries lie in -range .. range.
struct Entries {
  size_t table_bytes;
  float range;
};

// Split as 255 hi + lo, as 256 hi + lo or with a bias of 2^15, both bytes fit whatever the ISA.
constexpr Entries kT16 = {256, 127 * 255 - 1};
constexpr Entries kT8 = {128, 127};

struct LookupPlan {
  int64_t chunks;
  int64_t groups;
  int64_t group_chunks;      // the last group may be shorter
  int64_t blocks_per_group;  // so block j of group p has number p * blocks_per_group + j
  size_t sums_at;            // byte offsets inside one row's scratch: header, scales, sums, tables
  size_t tables_at;
  size_t table_bytes;  // of one chunk
  size_t row_bytes;
};

struct LookupBlock {
  int64_t number;
  int64_t group;
  int64_t first_chunk;
  int64_t chunks;  // 1 to kBlockChunks
};

inline LookupPlan lookup_plan(const MatMulProblem& p, const Entries& entries) {
  LookupPlan plan;
  plan.chunks = (p.K + kWordBits - 1) / kWordBits;
  plan.groups = (p.K - 1) / p.group_size + 1;
  plan.group_chunks = plan.groups == 1 ? plan.chunks : p.group_size / kWordBits;
  plan.blocks_per_group = (plan.group_chunks + kBlockChunks - 1) / kBlockChunks;
  const size_t floats = size_t(plan.groups * plan.blocks_per_group) * sizeof(float);
  plan.sums_at = kHeaderBytes + floats;
  plan.tables_at = (plan.sums_at + floats + 63) / 64 * 64;
  plan.table_bytes = entries.table_bytes;
  plan.row_bytes = plan.tables_at + size_t(plan.chunks) * plan.table_bytes;
  return plan;
}

// accuracy_level 4 allows 8 bits, 1 asks for float32; 16-bit tables are exact enough for all other levels.
inline bool t8_supports(const MatMulProblem& p) { return p.accuracy_level == 4; }
inline bool t16_supports(const MatMulProblem& p) { return p.accuracy_level != 1 && p.accuracy_level != 4; }

inline size_t t16_scratch_bytes(const MatMulProblem& p) { return size_t(p.M) * lookup_plan(p, kT16).row_bytes; }
inline size_t t8_scratch_bytes(const MatMulProblem& p) { return size_t(p.M) * lookup_plan(p, kT8).row_bytes; }

// Calls visit(LookupBlock) for all blocks in order.
template <typename Visit>
inline void for_each_block(const LookupPlan& plan, Visit visit) {
  for (int64_t group = 0; group < plan.groups; ++group) {
    const int64_t begin = group * plan.group_chunks;
    const int64_t end = begin + plan.group_chunks < plan.chunks ? begin + plan.group_chunks : plan.chunks;
    for (int64_t c = begin; c < end; c += kBlockChunks) {
      const int64_t number = group * plan.blocks_per_group + (c - begin) / kBlockChunks;
      visit(LookupBlock{number, group, c, end - c < kBlockChunks ? end - c : kBlockChunks});
    }
  }
}

// One prepared row of A. Only prepare() writes through it.
struct LookupRow {
  float* out;      // multiplies the results of the row, x86_rows.h; NaN where the row is not finite
  float* scale;    // s of each block
  float* sum;      // sum of the activations of each block; only where there is an offset
  uint8_t* tables;  // plan.table_bytes a chunk
};

inline LookupRow lookup_row(const LookupPlan& plan, const void* scratch, int64_t m) {
  uint8_t* base = static_cast<uint8_t*>(const_cast<void*>(scratch)) + size_t(m) * plan.row_bytes;
  return {reinterpret_cast<float*>(base), reinterpret_cast<float*>(base + kHeaderBytes),
          reinterpret_cast<float*>(base + plan.sums_at), base + plan.tables_at};
}

inline const uint16_t* plane_alpha(const MatMulProblem& p, int64_t cell, int64_t plane) {
  return plane == 0 ? p.alpha_1 + cell * kTileRows : p.alpha_rest + (cell * (p.bits - 1) + plane - 1) * kTileRows;
}

}  // namespace
}  // namespace bcq
