// SPDX-License-Identifier: Apache-2.0
// BcqMatMul in float32 for AVX2: weights decoded eight rows at a time, then FMA.
#include "kernels/bcq_matmul/exact_panel.h"

namespace bcq {
namespace {

struct Avx2 {
  using Floats = __m256;
  using Words = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kSums = 12;
  static constexpr int kRows = 6;
  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats load(const float* x) { return _mm256_load_ps(x); }
  static Floats all(const float* x) { return _mm256_broadcast_ss(x); }
  static Floats halves(const uint16_t* x) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static void store(float* to, Floats x) { _mm256_store_ps(to, x); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats sum) { return _mm256_fmadd_ps(a, b, sum); }
  static Words words(const uint32_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }
  template <int bits>
  static Words left(Words x) { return _mm256_slli_epi32(x, bits); }
  template <int bits>
  static Words right(Words x) { return _mm256_srli_epi32(x, bits); }
  static Floats keep(Words x, uint32_t mask) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int(mask))));
  }
};

}  // namespace

extern const MatMulKernel kMatMul_avx2_exact = {
    "avx2_exact", "avx2_exact", BCQ_CPU_AVX2, exact_supports, exact_scratch_bytes, prepare_exact, run_exact<Avx2>};

}  // namespace bcq
