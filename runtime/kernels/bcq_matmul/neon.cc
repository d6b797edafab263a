// SPDX-License-Identifier: Apache-2.0
// BcqMatMul for 64-bit Arm: look-up tables of signed sums, read by TBL over two registers, summed by UADALP.
#if defined(__aarch64__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns")  // before registers are given out, it would need more of them than there are
#endif

#include "kernels/bcq_matmul/neon_walk.h"

namespace bcq {

extern const MatMulKernel kMatMul_neon_t16 = {
    "neon_t16", "neon", BCQ_CPU_NEON, t16_supports, t16_scratch_bytes, prepare<T16>, run<T16>, order_line};
extern const MatMulKernel kMatMul_neon_t8 = {
    "neon_t8", "neon", BCQ_CPU_NEON, t8_supports, t8_scratch_bytes, prepare<T8>, run<T8>, order_line};

}  // namespace bcq
