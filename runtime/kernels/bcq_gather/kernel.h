// SPDX-License-Identifier: Apache-2.0
// What a BcqGather kernel is: one row of kernels.inc. Indices are validated before: kernels trust them.
#pragma once

#include <cstdint>

#include "core/bcq_core.h"

namespace bcq {

using GatherProblem = BcqGatherProblem;

struct GatherKernel {
  const char* name;
  const char* source;  // stem of the file that holds it
  uint32_t cpu_flags;
  // Writes the rows [begin, end) of Y.
  void (*run)(const GatherProblem&, int64_t begin, int64_t end);
};

#define BCQ_GATHER_KERNEL(name, source, flags) extern const GatherKernel kGather_##name;
#include "kernels/bcq_gather/kernels.inc"
#undef BCQ_GATHER_KERNEL

}  // namespace bcq
