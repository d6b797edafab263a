// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.h"

#include <cstring>

namespace bcq {
namespace {

struct Row {
  const char* name;
  const char* source;
  uint32_t flags;
};

#define BCQ_MATMUL_KERNEL(name, source, flags) &kMatMul_##name,
constexpr const MatMulKernel* kMatMulKernels[] = {
#include "kernels/bcq_matmul/kernels.inc"
};
#undef BCQ_MATMUL_KERNEL
#define BCQ_GATHER_KERNEL(name, source, flags) &kGather_##name,
constexpr const GatherKernel* kGatherKernels[] = {
#include "kernels/bcq_gather/kernels.inc"
};
#undef BCQ_GATHER_KERNEL

// The same rows as text, so that listing them needs no kernel and a test can compare both.
#define BCQ_MATMUL_KERNEL(name, source, flags) {#name, #source, flags},
constexpr Row kMatMulRows[] = {
#include "kernels/bcq_matmul/kernels.inc"
};
#undef BCQ_MATMUL_KERNEL
#define BCQ_GATHER_KERNEL(name, source, flags) {#name, #source, flags},
constexpr Row kGatherRows[] = {
#include "kernels/bcq_gather/kernels.inc"
};
#undef BCQ_GATHER_KERNEL

template <typename T, int32_t count>
int32_t length(const T (&)[count]) {
  return count;
}

template <typename Kernel, size_t count>
const Kernel* find(const Kernel* const (&kernels)[count], const char* name) {
  for (const Kernel* kernel : kernels) {
    if (name != nullptr && std::strcmp(kernel->name, name) == 0) return kernel;
  }
  return nullptr;
}

const Row* row_at(const char* op, int32_t index) {
  if (index < 0 || index >= bcq_kernel_count(op)) return nullptr;
  return std::strcmp(op, "BcqMatMul") == 0 ? &kMatMulRows[index] : &kGatherRows[index];
}

}  // namespace

const MatMulKernel* select_matmul(const MatMulProblem& problem, uint32_t cpu_flags) {
  for (const MatMulKernel* kernel : kMatMulKernels) {
    if ((kernel->cpu_flags & ~cpu_flags) != 0) continue;
    if (kernel->supports == nullptr || kernel->supports(problem)) return kernel;
  }
  return &kMatMul_scalar;
}

const GatherKernel* select_gather(const GatherProblem&, uint32_t cpu_flags) {
  for (const GatherKernel* kernel : kGatherKernels) {
    if ((kernel->cpu_flags & ~cpu_flags) == 0) return kernel;
  }
  return &kGather_scalar;
}

// Null, too, has no kernel.
const MatMulKernel* find_matmul(const char* name) { return find(kMatMulKernels, name); }
const GatherKernel* find_gather(const char* name) { return find(kGatherKernels, name); }

}  // namespace bcq

extern "C" {

int32_t bcq_kernel_count(const char* op) {
  if (std::strcmp(op, "BcqMatMul") == 0) return bcq::length(bcq::kMatMulRows);
  return std::strcmp(op, "BcqGather") == 0 ? bcq::length(bcq::kGatherRows) : 0;
}

const char* bcq_kernel_name(const char* op, int32_t index) {
  const bcq::Row* row = bcq::row_at(op, index);
  return row == nullptr ? nullptr : row->name;
}

const char* bcq_kernel_source(const char* op, int32_t index) {
  const bcq::Row* row = bcq::row_at(op, index);
  return row == nullptr ? nullptr : row->source;
}

uint32_t bcq_kernel_flags(const char* op, int32_t index) {
  const bcq::Row* row = bcq::row_at(op, index);
  return row == nullptr ? 0 : row->flags;
}

const char* bcq_select_matmul(const BcqMatMulProblem* problem, uint32_t flags) {
  return bcq::select_matmul(*problem, flags)->name;
}

const char* bcq_select_gather(const BcqGatherProblem* problem, uint32_t flags) {
  return bcq::select_gather(*problem, flags)->name;
}

}  // extern "C"
