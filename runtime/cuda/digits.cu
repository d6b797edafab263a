// SPDX-License-Identifier: Apache-2.0
// Launches of the digit kernel.
#include <algorithm>

#include "cuda/digits.h"
#include "cuda/kernels.h"

namespace bcq::cuda {
namespace {

// Activations of a block may take so much shared memory that two blocks still fit beside each other.
constexpr int kMostShared = 96 * 1024;
constexpr int kBlocksPerProcessor = 3;

template <int planes, int span, int tokens>
const char* run(const MatMul& p, const Device& device, void* stream) {
  using Memory = DigitsMemory<tokens>;
  const int steps = Steps<span>::count(p.layout), warps = std::min(kDigitsWarps, steps);
  const int step_bytes = Memory::template step_bytes<span>(), part_bytes = Memory::part_bytes(warps);
  const int fitting = (std::min(device.shared_bytes, kMostShared) - part_bytes) / step_bytes / warps * warps;
  const int panel = std::min(fitting, (steps + warps - 1) / warps * warps);
  const int shared = panel * step_bytes + part_bytes;
  // Each block takes as many row blocks as the others, and prepares the activations once for all of them.
  const int beside = std::max(1, std::min(kBlocksPerProcessor, 2 * kMostShared / shared));
  const int blocks = row_blocks(p.layout), slots = device.processors * beside;
  const int waves = (blocks + slots - 1) / slots;
  return launch(digits_kernel<planes, span, tokens>, (blocks + waves - 1) / waves, int((p.given.M + tokens - 1) / tokens),
                warps * kWarp, size_t(shared), stream, p, DigitsPlan{panel});
}

template <int planes, int span>
const char* run_tokens(const MatMul& p, const Device& device, void* stream) {
  return p.given.M == 1 ? run<planes, span, 1>(p, device, stream) : run<planes, span, 2>(p, device, stream);
}

template <int planes>
const char* run_span(const MatMul& p, const Device& device, void* stream) {
  switch (span_of(p.layout)) {
    case 4: return run_tokens<planes, 4>(p, device, stream);
    case 2: return run_tokens<planes, 2>(p, device, stream);
    default: return run_tokens<planes, 1>(p, device, stream);
  }
}

}  // namespace

const char* run_digits(const MatMul& p, const Device& device, void* stream) {
  switch (p.given.bits) {
    case 1: return run_span<1>(p, device, stream);
    case 2: return run_span<2>(p, device, stream);
    case 3: return run_span<3>(p, device, stream);
    default: return run_span<4>(p, device, stream);
  }
}

}  // namespace bcq::cuda
