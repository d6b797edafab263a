// SPDX-License-Identifier: Apache-2.0
// Rows of A for the float32 kernels: float32 in scratch, padded to whole chunks.
#pragma once

#include "kernels/bcq_matmul/isa_rows.h"

namespace bcq {
namespace {

// Sixteen floats in front of each row: they hold its output factor, and they keep rows whose length is a power of two
// from sharing the same few sets of the cache.
constexpr int64_t kRowHeader = 16;

struct ExactRows {
  float* first;
  int64_t stride;
  float* values(int64_t m) const { return first + m * stride + kRowHeader; }
  float& out(int64_t m) const { return first[m * stride]; }
};

inline int64_t exact_chunks(const MatMulProblem& p) { return (p.K + kWordBits - 1) / kWordBits; }
inline int64_t exact_stride(const MatMulProblem& p) { return kRowHeader + exact_chunks(p) * kWordBits; }
inline size_t exact_scratch_bytes(const MatMulProblem& p) { return size_t(p.M * exact_stride(p)) * sizeof(float); }

inline ExactRows exact_rows(const MatMulProblem& p, const void* scratch) {
  return {static_cast<float*>(const_cast<void*>(scratch)), exact_stride(p)};
}

// accuracy_level 1 asks for float32; look-up tables serve all other levels.
inline bool exact_supports(const MatMulProblem& p) { return p.accuracy_level == 1; }

// Row m of A as float32 with zeros up to a whole chunk, brought into range.
inline void prepare_exact_row(const MatMulProblem& p, const ExactRows& rows, int64_t m) {
  const RowRange range = range_of_row(p, m);
  rows.out(m) = range.out;
  float* to = rows.values(m);
  for (int64_t k = 0; k < rows.stride - kRowHeader; k += 8) {
    store_eight(to + k, times(eight_inputs(p, m, k), range.in));
  }
}

inline void prepare_exact(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const ExactRows rows = exact_rows(p, scratch);
  for (int64_t m = begin_row; m < end_row; ++m) prepare_exact_row(p, rows, m);
}

}  // namespace
}  // namespace bcq
