// SPDX-License-Identifier: Apache-2.0
// BcqMatMul in float32 for 64-bit Arm: weights decoded four rows at a time, then FMA.
#include "kernels/bcq_matmul/exact_panel.h"

namespace bcq {
namespace {

struct Neon {
  using Floats = float32x4_t;
  using Words = uint32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kSums = 16;
  static constexpr int kRows = 4;
  static Floats zero() { return vdupq_n_f32(0.0f); }
  static Floats load(const float* x) { return vld1q_f32(x); }
  static Floats all(const float* x) { return vld1q_dup_f32(x); }
  static Floats halves(const uint16_t* x) { return four_halves(x); }
  static void store(float* to, Floats x) { vst1q_f32(to, x); }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats fma(Floats a, Floats b, Floats sum) { return vfmaq_f32(sum, a, b); }
  static Words words(const uint32_t* x) { return vld1q_u32(x); }
  template <int bits>
  static Words left(Words x) { return vshlq_n_u32(x, bits); }
  template <int bits>
  static Words right(Words x) { return vshrq_n_u32(x, bits); }
  static Floats keep(Words x, uint32_t mask) { return vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(mask))); }
};

}  // namespace

extern const MatMulKernel kMatMul_neon_exact = {
    "neon_exact", "neon_exact", BCQ_CPU_NEON, exact_supports, exact_scratch_bytes, prepare_exact, run_exact<Neon>};

}  // namespace bcq
