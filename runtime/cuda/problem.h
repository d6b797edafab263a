// SPDX-License-Identifier: Apache-2.0
// How kernels read activations and write results of the three types.
#pragma once

#include "cuda/bcq_cuda.h"
#include "cuda/walk.h"

namespace bcq::cuda {

// A problem as kernels take it, by value.
struct MatMul {
  BcqCudaMatMul given;
  Layout layout;
};

BCQ_DEVICE float load_value(const void* from, size_t at, int type) {
  if (type == BCQ_CUDA_FLOAT32) return simt::load(static_cast<const float*>(from) + at);
  const uint16_t bits = simt::load(static_cast<const uint16_t*>(from) + at);
  return type == BCQ_CUDA_FLOAT16 ? simt::half_value(bits) : simt::as_float(uint32_t(bits) << 16);
}

BCQ_DEVICE void store_value(void* to, size_t at, int type, float value) {
  if (type == BCQ_CUDA_FLOAT32) static_cast<float*>(to)[at] = value;
  else static_cast<uint16_t*>(to)[at] = type == BCQ_CUDA_FLOAT16 ? simt::half_bits(value) : simt::brain_bits(value);
}

BCQ_DEVICE float activation(const MatMul& p, int64_t m, int k) {
  return load_value(p.given.a, size_t(m * p.given.a_stride + k), p.given.type);
}

// Halves 0..3 of two words.
BCQ_DEVICE float half_of(const Words2& words, int j) { return simt::half_value(words.at[j >> 1] >> 16 * (j & 1) & 0xffffu); }

}  // namespace bcq::cuda
