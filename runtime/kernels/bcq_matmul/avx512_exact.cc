// SPDX-License-Identifier: Apache-2.0
// BcqMatMul in float32 for AVX-512 without VBMI or VNNI: weights decoded a tile's sixteen rows at a time, then FMA.
#include "kernels/bcq_matmul/exact_panel.h"

namespace bcq {
namespace {

struct Avx512 {
  using Floats = __m512;
  using Words = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kSums = 24;
  static constexpr int kRows = 6;
  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats load(const float* x) { return _mm512_load_ps(x); }
  static Floats all(const float* x) { return _mm512_set1_ps(*x); }
  static Floats halves(const uint16_t* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static void store(float* to, Floats x) { _mm512_store_ps(to, x); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats sum) { return _mm512_fmadd_ps(a, b, sum); }
  static Words words(const uint32_t* x) { return _mm512_loadu_si512(x); }
  template <int bits>
  static Words left(Words x) { return _mm512_slli_epi32(x, bits); }
  template <int bits>
  static Words right(Words x) { return _mm512_srli_epi32(x, bits); }
  static Floats keep(Words x, uint32_t mask) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(mask))));
  }
};

}  // namespace

extern const MatMulKernel kMatMul_avx512_exact = {
    "avx512_exact", "avx512_exact", BCQ_CPU_AVX2 | BCQ_CPU_AVX512,
    exact_supports, exact_scratch_bytes, prepare_exact, run_exact<Avx512>};

}  // namespace bcq
