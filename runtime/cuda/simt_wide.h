// SPDX-License-Identifier: Apache-2.0
// What wide.h asks of a GPU beyond simt.h: the matrix instructions of four warps that compute capability 9.0 has and
// that run beside the program (wgmma), built for sm_90a alone.
#pragma once

#include "cuda/simt.h"

namespace bcq::cuda {
constexpr int kWideTokens = 128;           // columns of one instruction
constexpr int kWideRowBytes = 128;         // of shared memory: 64 inputs of one token
constexpr int kWideSums = kWideTokens / 2;  // registers of sums that a lane has: 64 rows by 128 columns in 128 lanes

// Where 16-byte unit 0 of a token lies in a block of such rows that begins at a multiple of 1024, and from there unit
// `unit`: eight rows have their units in eight different orders, so that the same units of eight tokens lie in different
// banks.
BCQ_HD uint32_t first_unit(int token) { return uint32_t(token * kWideRowBytes + ((token & 7) << 4)); }
BCQ_HD uint32_t swizzled(uint32_t first, int unit) { return first ^ uint32_t(unit << 4); }

// What an instruction is told about its second operand, 16 inputs of 128 tokens: the address, that 8 rows of 128 bytes
// lie 1024 bytes before the next 8, and that units are swizzled. `address` is that of shared memory, 32 bytes further for
// each 16 inputs of a row.
BCQ_HD uint64_t operand_at(uint32_t address) {
  constexpr uint64_t swizzled_by_128 = 1, group_bytes = 1024;
  return uint64_t((address & 0x3ffffu) >> 4) | uint64_t(1) << 16 | (group_bytes >> 4) << 32 | swizzled_by_128 << 62;
}
}  // namespace bcq::cuda

#if !defined(__CUDACC__)
#include "simt_wide_emulated.h"
#else

namespace bcq::simt {

// Address of shared memory as instructions have it.
BCQ_DEVICE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// One word of an operand.
BCQ_DEVICE void store_operand(uint32_t address, uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
// Makes this thread's stores visible to matrix instructions behind the next barrier.
BCQ_DEVICE void show_operands() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

BCQ_DEVICE void store_global2(void* to, const Words2& w) { *reinterpret_cast<uint2*>(to) = make_uint2(w.at[0], w.at[1]); }

// Registers written before are ready for the next instructions.
BCQ_DEVICE void wide_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Instructions since the last call are one group.
BCQ_DEVICE void wide_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All groups but the last `n` are done.
template <int n>
BCQ_DEVICE void wide_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}

#define BCQ_WIDE_8(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
                         "+f"(c[i + 6]), "+f"(c[i + 7])
#define BCQ_WIDE(type)                                                                                                   \
  asm volatile(                                                                                                          \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                                                        \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "      \
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, "   \
      "%33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, "   \
      "%55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}"                          \
      : BCQ_WIDE_8(c, 0), BCQ_WIDE_8(c, 8), BCQ_WIDE_8(c, 16), BCQ_WIDE_8(c, 24), BCQ_WIDE_8(c, 32), BCQ_WIDE_8(c, 40),  \
        BCQ_WIDE_8(c, 48), BCQ_WIDE_8(c, 56)                                                                             \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(operand), "r"(int(adds))                                         \
      : "memory")

// c += a b: 64 x 16, of which each of four warps brings 16 rows as in m16n8k16, times 16 x 128 in shared memory. The
// lane's sums: row g in c[4 n] and c[4 n + 1], columns 8 n + 2 t and the next, row g + 8 in the other two. Unless `adds`
// is set c is zero before; setting registers to zero would end the overlap.
template <bool brain>
BCQ_DEVICE void wide_multiply(float (&c)[bcq::cuda::kWideSums], const uint32_t (&a)[4], uint64_t operand, bool adds) {
  if constexpr (brain) BCQ_WIDE("bf16");
  else BCQ_WIDE("f16");
}
#undef BCQ_WIDE

// Sums may be read from here on.
BCQ_DEVICE void wide_finish(float (&c)[bcq::cuda::kWideSums]) {
  BCQ_UNROLL
  for (int i = 0; i < bcq::cuda::kWideSums; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

}  // namespace bcq::simt

#endif
