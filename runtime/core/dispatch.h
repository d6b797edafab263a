// SPDX-License-Identifier: Apache-2.0
// Which kernel runs: the first row of kernels.inc whose flags the CPU has and which supports the problem.
#pragma once

#include <cstdint>

#include "kernels/bcq_gather/kernel.h"
#include "kernels/bcq_matmul/kernel.h"

namespace bcq {

// Never null: the scalar kernel needs no flag and takes every problem.
const MatMulKernel* select_matmul(const MatMulProblem& problem, uint32_t cpu_flags);
const GatherKernel* select_gather(const GatherProblem& problem, uint32_t cpu_flags);

// By name, whatever the CPU; null when there is no such row.
const MatMulKernel* find_matmul(const char* name);
const GatherKernel* find_gather(const char* name);

}  // namespace bcq
