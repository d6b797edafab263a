// SPDX-License-Identifier: Apache-2.0
// Launches of the generic kernel and of the gather, and the way to those of the wide kernel.
#include <algorithm>

#include "cuda/gather.h"
#include "cuda/generic.h"
#include "cuda/kernels.h"

namespace bcq::cuda {

const char* run_generic(const MatMul& p, const Device&, void* stream) {
  constexpr size_t shared = sizeof(float) * kGenericWarps * kGenericTokens * kWarp;
  return launch(generic_kernel, row_blocks(p.layout), int((p.given.M + kGenericTokens - 1) / kGenericTokens),
                kGenericWarps * kWarp, shared, stream, p);
}

const char* run_wide(const MatMul& p, const Device& device, void* stream) {
  switch (p.given.bits) {
    case 1: return run_wide_planes<1>(p, device, stream);
    case 2: return run_wide_planes<2>(p, device, stream);
    case 3: return run_wide_planes<3>(p, device, stream);
    default: return run_wide_planes<4>(p, device, stream);
  }
}

const char* run_gather(const BcqCudaGather& given, void* stream) {
  constexpr int64_t most = 65535;  // blocks along y
  const Gather p{given, layout_of(given.K, given.N, given.group_size, given.bits, given.planes)};
  const int rows = int(std::min(given.count, most));
  return launch(gather_kernel, (p.layout.chunks + kGatherChunks - 1) / kGatherChunks, rows, kGatherWarps * kWarp, 0, stream,
                p, rows);
}

}  // namespace bcq::cuda
