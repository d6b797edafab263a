// SPDX-License-Identifier: Apache-2.0
// Rows of bfloat16 as float32 and back: kernels take such problems as float32 ones, in memory behind their scratch.
#pragma once

#include <cstddef>

#include "core/bcq_core.h"
#include "core/half.h"
#include "core/lines.h"

namespace bcq {

// Bytes of the float32 activations and results of p.M rows.
static inline size_t widened_bytes(const BcqMatMulProblem& p) {
  return whole_lines(size_t(p.M) * size_t(p.K) * sizeof(float)) + size_t(p.M) * size_t(p.N) * sizeof(float);
}

// The problem as kernels see it; `memory` has widened_bytes, at a multiple of 64, or is null where only sizes matter.
static inline BcqMatMulProblem widened(const BcqMatMulProblem& p, unsigned char* memory) {
  BcqMatMulProblem wide = p;
  wide.a_is_brain = 0;
  wide.a = memory;
  wide.a_stride = p.K;
  wide.y = memory == nullptr ? nullptr : memory + whole_lines(size_t(p.M) * size_t(p.K) * sizeof(float));
  wide.y_stride = p.N;
  return wide;
}

static inline void widen_row(const BcqMatMulProblem& p, const BcqMatMulProblem& wide, int64_t m) {
  const uint16_t* from = static_cast<const uint16_t*>(p.a) + m * p.a_stride;
  float* to = static_cast<float*>(const_cast<void*>(wide.a)) + m * wide.a_stride;
  for (int64_t k = 0; k < p.K; ++k) to[k] = brain_to_float(from[k]);
}

static inline void narrow_row(const BcqMatMulProblem& p, const BcqMatMulProblem& wide, int64_t m) {
  const float* from = static_cast<const float*>(wide.y) + m * wide.y_stride;
  uint16_t* to = static_cast<uint16_t*>(p.y) + m * p.y_stride;
  for (int64_t n = 0; n < p.N; ++n) to[n] = float_to_brain(from[n]);
}

}  // namespace bcq
