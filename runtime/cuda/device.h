// SPDX-License-Identifier: Apache-2.0
// The device that launches go to, and the launch itself.
#pragma once

#include <cstddef>

#include "cuda/simt.h"

namespace bcq::cuda {

struct Device {
  int sm;            // compute capability, 90 for 9.0
  int processors;    // multiprocessors
  int shared_bytes;  // that one block may have
};

// The current device; false when there is none that can be used, see why_unavailable().
bool current_device(Device& device);
const char* why_unavailable();
const char* device_text();

#if defined(__CUDACC__)

// Null, or why a launch failed.
const char* launch_error(cudaError_t error);

template <typename... Formal, typename... Actual>
const char* launch(void (*kernel)(Formal...), int blocks_x, int blocks_y, int threads, size_t shared_bytes, void* stream,
                   const Actual&... arguments) {
  constexpr size_t usual = 48 * 1024;  // more must be asked for
  if (shared_bytes > usual) {
    const cudaError_t refusal =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (refusal != cudaSuccess) return launch_error(refusal);
  }
  // The function's own answer, not the last error of the thread: that may be somebody else's.
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks_x), unsigned(blocks_y));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = cudaStream_t(stream);
  return launch_error(cudaLaunchKernelEx(&config, kernel, Formal(arguments)...));
}

#else

template <typename... Formal, typename... Actual>
const char* launch(void (*kernel)(Formal...), int blocks_x, int blocks_y, int threads, size_t shared_bytes, void* stream,
                   const Actual&... arguments) {
  simt::launch(kernel, blocks_x, blocks_y, threads, shared_bytes, stream, arguments...);
  return nullptr;
}

#endif

}  // namespace bcq::cuda
