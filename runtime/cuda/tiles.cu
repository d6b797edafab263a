// SPDX-License-Identifier: Apache-2.0
// Launches of the tile kernels.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/tiles.h"

namespace bcq::cuda {
namespace {

template <bool brain, int planes, int nt>
const char* run(const MatMul& p, const Device& device, void* stream) {
  using Shape = TilesShape<nt>;
  const int stages = (p.layout.chunks + kStageChunks - 1) / kStageChunks;
  int splits = std::min(stages, kTilesThreads / (kWarp * Shape::kRowWarps));
  while (splits > 1 && Shape::template bytes<planes>(splits) > device.shared_bytes) --splits;
  const bool aligned = reinterpret_cast<uintptr_t>(p.given.a) % 16 == 0 && p.given.a_stride % 8 == 0;
  return launch(tiles_kernel<brain, planes, nt>, (p.layout.N + Shape::kRows - 1) / Shape::kRows,
                int((p.given.M + Shape::kTokens - 1) / Shape::kTokens), splits * Shape::kRowWarps * kWarp,
                size_t(Shape::template bytes<planes>(splits)), stream, p, aligned);
}

template <int planes, int nt>
const char* run_type(const MatMul& p, const Device& device, void* stream) {
  return p.given.type == BCQ_CUDA_BFLOAT16 ? run<true, planes, nt>(p, device, stream)
                                           : run<false, planes, nt>(p, device, stream);
}

}  // namespace

template <int nt>
const char* run_tiles(const MatMul& p, const Device& device, void* stream) {
  switch (p.given.bits) {
    case 1: return run_type<1, nt>(p, device, stream);
    case 2: return run_type<2, nt>(p, device, stream);
    case 3: return run_type<3, nt>(p, device, stream);
    default: return run_type<4, nt>(p, device, stream);
  }
}

template const char* run_tiles<BCQ_CUDA_COLUMNS>(const MatMul&, const Device&, void*);

}  // namespace bcq::cuda
