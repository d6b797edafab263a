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

// Whether blocks of 128 rows, of which two share a multiprocessor, end before those of 256 rows, which bring the
// activations once for twice as many products. Times by counts of instructions, in tenths of what two small blocks take
// together: 9 for a large block, 6 for a small one alone.
bool small_blocks_win(const MatMul& p, const Device& device, int small_bytes) {
  const int64_t columns = (p.given.M + kWideTokens - 1) / kWideTokens;
  const int64_t small = (p.layout.N + kWideGroupRows - 1) / kWideGroupRows * columns;
  const int64_t large = (p.layout.N + 2 * kWideGroupRows - 1) / (2 * kWideGroupRows) * columns;
  const int64_t processors = device.processors, large_time = (large + processors - 1) / processors * 9;
  if (2 * small_bytes > device.shared_bytes) return (small + processors - 1) / processors * 6 < large_time;
  const int64_t rest = small % (2 * processors);
  return small / (2 * processors) * 10 + (rest == 0 ? 0 : rest <= processors ? 6 : 10) < large_time;
}

template <bool brain, int planes>
const char* run_groups(const MatMul& p, const Device& device, void* stream) {
  return small_blocks_win(p, device, wide_bytes<planes>(kWideGroupWarps)) ? run<brain, planes, 1>(p, stream)
                                                                          : run<brain, planes, 2>(p, stream);
}

}  // namespace

template <int planes>
const char* run_wide_planes(const MatMul& p, const Device& device, void* stream) {
  return p.given.type == BCQ_CUDA_BFLOAT16 ? run_groups<true, planes>(p, device, stream)
                                           : run_groups<false, planes>(p, device, stream);
}

template const char* run_wide_planes<BCQ_CUDA_PLANES>(const MatMul&, const Device&, void*);

}  // namespace bcq::cuda
