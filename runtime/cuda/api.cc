// SPDX-License-Identifier: Apache-2.0
// The plain C ABI: what can run here, and launches.
#include <algorithm>
#include <cstdio>

#include "cuda/kernels.h"

namespace bcq::cuda {
namespace {

constexpr int kMostPlanesOfTiles = 4;
constexpr int64_t kMostSize = (int64_t(1) << 31) - (1 << 16);  // of K and N: kernels count in int, a little past the end

// Valid until this thread's next call.
const char* message(const char* format, const char* value) {
  static thread_local char text[256];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

size_t element_size(int type) { return type == BCQ_CUDA_FLOAT32 ? 4 : 2; }

// Why no kernel takes a matrix.
const char* refuse_size(int64_t K, int64_t N) {
  return K <= kMostSize && N <= kMostSize ? nullptr : "K and N: the CUDA kernels take at most 2^31 - 2^16";
}

// Why a kernel that a program names does not take a problem.
const char* refuse(const Kernel& kernel, const BcqCudaMatMul& p, int sm) {
  if (all_units(layout_of(p.K, p.N, p.group_size, p.bits, p.planes), (p.N + kTileRows - 1) / kTileRows) >= kMostUnits) {
    return message("%s: takes at most 2^34 words of codes", kernel.name);
  }
  const bool generic = &kernel == find("generic"), digits = &kernel == find("digits"), wide = &kernel == find("wide128");
  if (generic) return nullptr;
  if (p.bits > kMostPlanesOfTiles) return message("%s: takes at most four planes", kernel.name);
  if (digits) return nullptr;
  if (p.type == BCQ_CUDA_FLOAT32) return message("%s: takes float16 and bfloat16", kernel.name);
  if (wide && sm != 90) return message("%s: needs compute capability 9.0", kernel.name);
  if (p.type == BCQ_CUDA_BFLOAT16 && sm < 80) return message("%s: bfloat16 needs compute capability 8.0", kernel.name);
  return nullptr;
}

// Rows [begin, begin + count) of a problem.
MatMul part_of(const BcqCudaMatMul& p, int64_t begin, int64_t count) {
  BcqCudaMatMul part = p;
  const size_t size = element_size(p.type);
  part.M = count;
  part.a = static_cast<const char*>(p.a) + size_t(begin * p.a_stride) * size;
  part.y = static_cast<char*>(p.y) + size_t(begin * p.y_stride) * size;
  return {part, layout_of(p.K, p.N, p.group_size, p.bits, p.planes)};
}

}  // namespace
}  // namespace bcq::cuda

extern "C" {

int32_t bcq_cuda_abi(void) { return BCQ_CUDA_ABI; }

const char* bcq_cuda_unavailable(void) { return bcq::cuda::why_unavailable(); }

const char* bcq_cuda_device(void) { return bcq::cuda::device_text(); }

const char* bcq_cuda_matmul(const BcqCudaMatMul* problem, const char* name, void* stream) {
  using namespace bcq::cuda;
  Device device;
  if (!current_device(device)) return why_unavailable();
  const Kernel* kernel = name == nullptr ? &select(*problem, device.sm, device.processors) : find(name);
  if (kernel == nullptr) return message("%s: unknown kernel name", name);
  if (const char* refusal = refuse_size(problem->K, problem->N)) return refusal;
  if (const char* refusal = refuse(*kernel, *problem, device.sm)) return refusal;
  for (int64_t begin = 0; begin < problem->M; begin += kMostRows) {
    const int64_t count = std::min(kMostRows, problem->M - begin);
    if (const char* failure = kernel->run(part_of(*problem, begin, count), device, stream)) return failure;
  }
  return nullptr;
}

const char* bcq_cuda_gather(const BcqCudaGather* problem, void* stream) {
  using namespace bcq::cuda;
  if (problem->count == 0) return nullptr;
  if (const char* refusal = refuse_size(problem->K, problem->N)) return refusal;
  return run_gather(*problem, stream);
}

}  // extern "C"
