// SPDX-License-Identifier: Apache-2.0
// Launches of the wide kernel; compiled for sm_90a alone.
#include "cuda/kernels.h"
#include "cuda/wide.h"

namespace bcq::cuda {
namespace {

template <bool brain, int planes, int groups>
const char* run(const MatMul& p, void* stream) {
  constexpr int rows = groups * kWideGroupRows, warps = groups * kWideGroupWarps;
  const bool aligned = reinterpret_cast<uintptr_t>(p.given.a) % 16 == 0 && p.given.a_stride % 8 == 0;
  return launch(wide_kernel<brain, planes, groups>, (p.layout.N + rows - 1) / rows,
                int((p.given.M + kWideTokens - 1) / kWideTokens), warps * kWarp, size_t(wide_bytes<planes>(warps)), stream, p,
                aligned);
}

// Blocks of 256 rows share activations; those of 128 rows keep more multiprocessors busy where there are few.
template <bool brain, int planes>
const char* run_groups(const MatMul& p, const Device& device, void* stream) {
  const int64_t blocks_y = (p.given.M + kWideTokens - 1) / kWideTokens;
  const int64_t small_blocks = (p.layout.N + kWideGroupRows - 1) / kWideGroupRows * blocks_y;
  return small_blocks > device.processors ? run<brain, planes, 2>(p, stream) : run<brain, planes, 1>(p, stream);
}

}  // namespace

template <int planes>
const char* run_wide_planes(const MatMul& p, const Device& device, void* stream) {
  return p.given.type == BCQ_CUDA_BFLOAT16 ? run_groups<true, planes>(p, device, stream)
                                           : run_groups<false, planes>(p, device, stream);
}

template const char* run_wide_planes<BCQ_CUDA_PLANES>(const MatMul&, const Device&, void*);

}  // namespace bcq::cuda
