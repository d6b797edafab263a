// SPDX-License-Identifier: Apache-2.0
// Kernels on small ragged problems in allocations of exact size, for compute-sanitizer: it knows no Python and starts in
// a second. Takes the names of the kernels, none for all; prints the number of problems. Results are not looked at.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/bcq_cuda.h"

namespace {

void demand(bool well, const char* what) {
  if (well) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

template <typename T>
struct Buffer {
  T* device = nullptr;
  explicit Buffer(const std::vector<T>& values) {
    if (values.empty()) return;
    demand(cudaMalloc(&device, values.size() * sizeof(T)) == cudaSuccess, "cudaMalloc");
    demand(cudaMemcpy(device, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess, "copy in");
  }
  ~Buffer() { cudaFree(device); }
  Buffer(const Buffer&) = delete;
};

uint32_t random_word() {
  static uint64_t state = 88172645463325252ull;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return uint32_t(state >> 16);
}

// Float16 values of 2^-4 with a random sign and fraction; as bfloat16 they are as finite.
std::vector<uint16_t> halves(size_t count) {
  std::vector<uint16_t> values(count);
  for (uint16_t& v : values) v = uint16_t(0x2c00u | (random_word() & 0x83ffu));
  return values;
}

std::vector<const char*> names;  // of the kernels that run

int run(int64_t M, int64_t N, int64_t K, int64_t group, int bits, bool offset, int further = 0) {
  const size_t tiles = size_t(N + 15) / 16, chunks = size_t(K + 31) / 32, groups = size_t((K - 1) / group + 1);
  std::vector<uint32_t> words(tiles * chunks * size_t(bits + further) * 16);
  for (uint32_t& w : words) w = random_word();
  const Buffer<uint32_t> codes(words);
  const Buffer<uint16_t> alpha_1(halves(tiles * groups * 16));
  const Buffer<uint16_t> rest(halves(tiles * groups * 16 * size_t(bits - 1)));
  const Buffer<uint16_t> shift(offset ? halves(tiles * groups * 16) : std::vector<uint16_t>());
  int count = 0;
  for (int type = 0; type < 3; ++type) {
    const Buffer<uint16_t> a(halves(size_t(M * K) * (type == 0 ? 2 : 1)));
    const Buffer<uint16_t> y(halves(size_t(M * N) * (type == 0 ? 2 : 1)));
    BcqCudaMatMul p = {M, K, N, group, bits, bits + further, type, 0, a.device, K, y.device, N, codes.device, alpha_1.device,
                       rest.device, shift.device};
    for (const char* name : names) {
      count += bcq_cuda_matmul(&p, name, nullptr) == nullptr;  // some take neither this type nor so many planes
    }
    demand(cudaDeviceSynchronize() == cudaSuccess, "a kernel failed");
  }
  const Buffer<int64_t> indices({0, N - 1, -N, N});
  const Buffer<float> rows(std::vector<float>(size_t(4 * K)));
  BcqCudaGather g = {4, K, N, group, bits, bits + further, BCQ_CUDA_FLOAT32, 0, indices.device, rows.device, codes.device,
                     alpha_1.device, rest.device, shift.device};
  demand(bcq_cuda_gather(&g, nullptr) == nullptr && cudaDeviceSynchronize() == cudaSuccess, "gather");
  return count + 1;
}

}  // namespace

int main(int argc, char** argv) {
  names.assign(argv + 1, argv + argc);
  for (int i = 0; argc < 2 && bcq_cuda_kernel_name(i) != nullptr; ++i) names.push_back(bcq_cuda_kernel_name(i));
  if (const char* reason = bcq_cuda_unavailable()) {
    std::printf("%s\n", reason);
    return 2;
  }
  int count = 0;
  for (int bits = 1; bits <= 5; ++bits) {
    count += run(1, 17, 33, 33, bits, true);
    count += run(3, 40, 300, 32, bits, false);
    count += run(9, 75, 520, 64, bits, true, 2);
    count += run(66, 130, 1300, 128, bits, false);
    count += run(129, 140, 400, 128, bits, true);
  }
  std::printf("%d problems\n", count);
  return 0;
}
