// SPDX-License-Identifier: Apache-2.0
// The few things that kernels ask of a GPU, by name. The kernels use nothing else, so that a host compiler can build the
// same sources against tests/native/simt_emulated.h and run them thread by thread on a CPU.
#pragma once

#include <cstdint>

// Bytes and words as vector loads bring them.
struct Words4 {
  uint32_t at[4];
};
struct Words2 {
  uint32_t at[2];
};

#if !defined(__CUDACC__)
#include "simt_emulated.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define BCQ_HD __host__ __device__ __forceinline__
#define BCQ_DEVICE __device__ __forceinline__
#define BCQ_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define BCQ_UNROLL _Pragma("unroll")

namespace bcq::simt {

BCQ_DEVICE int thread() { return int(threadIdx.x); }
BCQ_DEVICE int threads() { return int(blockDim.x); }
BCQ_DEVICE int block_x() { return int(blockIdx.x); }
BCQ_DEVICE int block_y() { return int(blockIdx.y); }
BCQ_DEVICE int blocks_x() { return int(gridDim.x); }
BCQ_DEVICE void sync() { __syncthreads(); }
BCQ_DEVICE void sync_warp() { __syncwarp(); }

// The block's shared memory, at a multiple of 16 bytes.
BCQ_DEVICE unsigned char* shared() {
  extern __shared__ __align__(16) unsigned char block_memory[];
  return block_memory;
}

BCQ_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
BCQ_DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Over aligned sets of `width` lanes; all 32 lanes call it.
#if __CUDA_ARCH__ >= 800
constexpr int kReduced = 32;  // sets that one instruction reduces
#else
constexpr int kReduced = 0;
#endif
template <int width>
BCQ_DEVICE int reduce_max(int value) {
  if constexpr (width == kReduced) {
    int result;  // the intrinsics do not exist where old devices are compiled for
    asm volatile("redux.sync.max.s32 %0, %1, 0xffffffff;" : "=r"(result) : "r"(value));
    return result;
  } else {
    BCQ_UNROLL
    for (int mask = width / 2; mask > 0; mask /= 2) value = max(value, shuffle_xor(value, mask));
    return value;
  }
}
template <int width>
BCQ_DEVICE int reduce_add(int value) {
  if constexpr (width == kReduced) {
    int result;
    asm volatile("redux.sync.add.s32 %0, %1, 0xffffffff;" : "=r"(result) : "r"(value));
    return result;
  } else {
    BCQ_UNROLL
    for (int mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
  }
}

// Codes are read once: they pass through L1 without staying there.
BCQ_DEVICE Words4 load_once(const uint32_t* from) {
  Words4 w;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
               : "l"(from));
  return w;
}
BCQ_DEVICE Words4 load4(const void* from) {
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  return {v.x, v.y, v.z, v.w};
}
BCQ_DEVICE Words2 load2(const void* from) {
  const uint2 v = __ldg(static_cast<const uint2*>(from));
  return {v.x, v.y};
}
template <typename T>
BCQ_DEVICE T load(const T* from) {
  return __ldg(from);
}

// Shared memory, aligned to their size.
BCQ_DEVICE Words4 shared4(const uint32_t* from) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  return {v.x, v.y, v.z, v.w};
}
BCQ_DEVICE Words2 shared2(const uint32_t* from) {
  const uint2 v = *reinterpret_cast<const uint2*>(from);
  return {v.x, v.y};
}
BCQ_DEVICE void store_shared4(uint32_t* to, const Words4& w) {
  *reinterpret_cast<uint4*>(to) = make_uint4(w.at[0], w.at[1], w.at[2], w.at[3]);
}

BCQ_DEVICE float half_value(uint32_t bits) { return __half2float(__ushort_as_half(uint16_t(bits))); }
BCQ_DEVICE uint16_t half_bits(float value) { return __half_as_ushort(__float2half_rn(value)); }
BCQ_DEVICE uint16_t brain_bits(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
// Two values rounded to 16 bits, the first one low.
BCQ_DEVICE uint32_t half_pair(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
BCQ_DEVICE uint32_t brain_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

BCQ_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
BCQ_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }
BCQ_DEVICE int nearest(float value) { return __float2int_rn(value); }
BCQ_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// Byte i of the result is byte (selector >> 4 i) & 7 of (high, low); bit 3 of each nibble must be zero.
BCQ_DEVICE uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t bytes;  // the intrinsic would first clear bit 3 of each nibble
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
  return bytes;
}

// The sum of four signed bytes.
BCQ_DEVICE int sum_bytes(uint32_t word) { return __dp4a(int(word), 0x01010101, 0); }

// c += a b, 16 x 32 unsigned bytes times 32 x 8 signed bytes, fragments as PTX has them for m16n8k32.
BCQ_DEVICE void mma_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  // The four quarters of the same product; rows 8 to 15 are a[1] and a[3], inputs 16 to 31 are a[2] and a[3].
  BCQ_UNROLL
  for (int quarter = 0; quarter < 4; ++quarter) {
    const int rows = quarter & 1;
    asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(c[2 * rows]), "+r"(c[2 * rows + 1])
        : "r"(a[quarter]), "r"(quarter < 2 ? b0 : b1));
  }
#endif
}

// c = a b.
BCQ_DEVICE void mma_bytes_first(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
#else
  c[0] = c[1] = c[2] = c[3] = 0;
  mma_bytes(c, a, b0, b1);
#endif
}

// c += a b, 16 x 16 times 16 x 8 float16 with float32 sums, fragments as PTX has them for m16n8k16.
BCQ_DEVICE void mma_halves(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// The same for bfloat16; devices before 8.0 have none, and selection does not send it there.
BCQ_DEVICE void mma_brains(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  c[0] = c[1] = c[2] = c[3] = as_float(0x7fc00000u);
#endif
}

}  // namespace bcq::simt

#endif
