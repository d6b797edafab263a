// SPDX-License-Identifier: Apache-2.0
// BcqMatMul for AVX-512 with VBMI and VNNI: look-up tables read by vpermb, summed by vpdpbusd.
#include "kernels/bcq_matmul/avx512_walk.h"

namespace bcq {
namespace {

constexpr uint32_t kFlags = BCQ_CPU_AVX2 | BCQ_CPU_AVX512 | BCQ_CPU_AVX512VBMI | BCQ_CPU_AVX512VNNI;

}  // namespace

extern const MatMulKernel kMatMul_avx512_t16 = {"avx512_t16", "avx512", kFlags, t16_supports, t16_scratch_bytes,
                                                prepare<T16>, run<T16>};
extern const MatMulKernel kMatMul_avx512_t8 = {"avx512_t8", "avx512", kFlags, t8_supports, t8_scratch_bytes,
                                               prepare<T8>, run<T8>};

}  // namespace bcq
