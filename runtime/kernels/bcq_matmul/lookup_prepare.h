// SPDX-License-Identifier: Apache-2.0
// Prepares activations for the look-up kernels: block scales, block sums, and scaled inputs for the sixteen signed sums of
// each quad. How these become table entries, and entries bytes, is the business of each instruction set.
#pragma once

#include "core/half.h"
#include "kernels/bcq_matmul/lookup_plan.h"
#include "kernels/bcq_matmul/isa_rows.h"

namespace bcq {
namespace {

// Rows are brought into range (row_range.h), so that neither a sum of 128 activations nor s can overflow or lose bits
// to subnormals. In a block below this, every activation is under 2^-40 of the row's largest one, which is at least
// 2^-60, and counts as zero. ops/README.md allows that: other blocks may have factors so small that it shows.
constexpr float kNoScale = 0x1p-100f;

inline Eight eight_scaled(const MatMulProblem& p, int64_t m, int64_t k, float in) {
  return times(eight_inputs(p, m, k), in);
}

// The sum of a block's inputs times `in`, and the largest sum of magnitudes of one of its quads.
struct BlockSize {
  float sum;
  float most;
};

inline BlockSize size_of_block(const MatMulProblem& p, int64_t m, const LookupBlock& block, float in) {
  const int64_t first = block.first_chunk * kWordBits;
  Eight most = eight_zeros();
  Eight all = eight_zeros();
  for (int64_t k = first; k < first + block.chunks * kWordBits; k += 8) {
    const Eight v = eight_scaled(p, m, k, in);
    all = plus(all, v);
    most = larger(most, quad_magnitudes(v));
  }
  return {total(all), largest(most)};
}

// Prepares row m. write_chunk(const float* scaled, uint8_t* table) stores the eight quads of one chunk, whose entries
// have magnitudes up to `range`, and which takes plan.table_bytes.
template <typename WriteChunk>
inline void prepare_row(const MatMulProblem& problem, const LookupPlan& plan, void* scratch, int64_t m, float range,
                        WriteChunk write_chunk) {
  const MatMulProblem p = problem;  // stores into scratch cannot change a copy: its fields stay in registers
  const LookupRow row = lookup_row(plan, scratch, m);
  const RowRange row_range = range_of_row(p, m);
  *row.out = row_range.finite ? row_range.out : bits_to_float(kNanBits);
  for_each_block(plan, [&](const LookupBlock& block) {
    const BlockSize size = size_of_block(p, m, block, row_range.in);
    row.sum[block.number] = size.sum;
    row.scale[block.number] = size.most;
  });
  // A pass of its own, so that the sums and divisions of different blocks overlap.
  for_each_block(plan, [&](const LookupBlock& block) {
    const float most = row.scale[block.number];
    const bool scaled = most >= kNoScale;
    row.scale[block.number] = scaled ? most / range : 0.0f;
    const float inverse = scaled ? range / most : 0.0f;
    for (int64_t c = block.first_chunk; c < block.first_chunk + block.chunks; ++c) {
      alignas(32) float x[kWordBits];
      for (int64_t j = 0; j < kWordBits; j += 8) {
        store_eight(x + j, times(eight_scaled(p, m, c * kWordBits + j, row_range.in), inverse));
      }
      write_chunk(x, row.tables + size_t(c) * plan.table_bytes);
    }
  });
}

}  // namespace
}  // namespace bcq
