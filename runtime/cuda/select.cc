// SPDX-License-Identifier: Apache-2.0
// Which kernel a problem gets. The crossovers are estimates from instruction counts (docs/decisions/0016-cuda.md) until
// they have been measured: `make gpu-check` prints every kernel at every number of rows.
#include <cstring>

#include "cuda/kernels.h"

namespace bcq::cuda {
namespace {

constexpr int kFastPlanes = 4;
constexpr int64_t kDigitsRows = 2;

#define BCQ_CUDA_KERNEL(name, tokens, run) {#name, run},
constexpr Kernel kKernels[] = {BCQ_CUDA_KERNELS(BCQ_CUDA_KERNEL)};
#undef BCQ_CUDA_KERNEL

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Time of a tile kernel in units of one column of 8 tokens: a warp spends as much on decoding 32 rows as on five columns
// of products, and the multiprocessors work in waves of blocks.
int64_t tiles_cost(const BcqCudaMatMul& p, int processors, int columns) {
  const int row_warps = columns == 1 ? 1 : columns < 8 ? 2 : 4;
  const int64_t blocks = ceil_div(p.N, 32 * row_warps) * ceil_div(p.M, 8 * columns);
  return ceil_div(blocks, processors) * row_warps * (5 + columns);
}

const char* tiles_name(const BcqCudaMatMul& p, int processors) {
  constexpr const char* names[] = {"tiles8", "tiles16", "tiles32", "tiles64"};
  int best = 0;
  for (int i = 1; i < 4; ++i) {
    if (tiles_cost(p, processors, 1 << i) <= tiles_cost(p, processors, 1 << best)) best = i;
  }
  return names[best];
}

}  // namespace

const Kernel* find(const char* name) {
  for (const Kernel& kernel : kKernels) {
    if (name != nullptr && std::strcmp(kernel.name, name) == 0) return &kernel;
  }
  return nullptr;
}

const Kernel& select(const BcqCudaMatMul& p, int sm, int processors) {
  if (p.bits > kFastPlanes || p.accuracy_level == 1) return *find("generic");
  const bool halves = p.type == BCQ_CUDA_FLOAT16 || (p.type == BCQ_CUDA_BFLOAT16 && sm >= 80);
  if (p.M <= kDigitsRows || !halves) return *find("digits");
  return *find(tiles_name(p, processors));
}

}  // namespace bcq::cuda

extern "C" {

const char* bcq_cuda_kernel_name(int32_t index) {
  constexpr int32_t count = int32_t(sizeof bcq::cuda::kKernels / sizeof *bcq::cuda::kKernels);
  return index < 0 || index >= count ? nullptr : bcq::cuda::kKernels[index].name;
}

const char* bcq_cuda_select(const BcqCudaMatMul* problem, int32_t sm, int32_t processors) {
  return bcq::cuda::select(*problem, sm, processors).name;
}

}  // extern "C"
