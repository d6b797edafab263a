// SPDX-License-Identifier: Apache-2.0
// The matmul kernels by name, and which of them a problem gets on a device.
#pragma once

#include "cuda/device.h"
#include "cuda/problem.h"

// BCQ_CUDA_KERNEL(name, tokens of a block, run): in bcq_cuda_kernel_name's order.
#define BCQ_CUDA_KERNELS(BCQ_CUDA_KERNEL)         \
  BCQ_CUDA_KERNEL(digits, 2, run_digits)          \
  BCQ_CUDA_KERNEL(tiles8, 8, run_tiles<1>)        \
  BCQ_CUDA_KERNEL(tiles16, 16, run_tiles<2>)      \
  BCQ_CUDA_KERNEL(tiles32, 32, run_tiles<4>)      \
  BCQ_CUDA_KERNEL(tiles64, 64, run_tiles<8>)      \
  BCQ_CUDA_KERNEL(wide128, 128, run_wide)         \
  BCQ_CUDA_KERNEL(generic, 4, run_generic)

namespace bcq::cuda {

// Each launches a problem of at most kMostRows rows; null, or why it did not.
using Run = const char* (*)(const MatMul&, const Device&, void* stream);

const char* run_digits(const MatMul&, const Device&, void* stream);
template <int nt>
const char* run_tiles(const MatMul&, const Device&, void* stream);
template <int planes>
const char* run_wide_planes(const MatMul&, const Device&, void* stream);
const char* run_wide(const MatMul&, const Device&, void* stream);
const char* run_generic(const MatMul&, const Device&, void* stream);
const char* run_gather(const BcqCudaGather&, void* stream);

constexpr int64_t kMostRows = 65536;  // of A in one launch: blocks along y are limited

struct Kernel {
  const char* name;
  Run run;
};

// The kernel of that name, or null.
const Kernel* find(const char* name);
const Kernel& select(const BcqCudaMatMul& problem, int sm, int processors);

}  // namespace bcq::cuda
