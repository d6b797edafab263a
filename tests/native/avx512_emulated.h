// SPDX-License-Identifier: Apache-2.0
// AVX-512 on a CPU without it, for tests: SIMDe under the native names, and what SIMDe 0.7 lacks. Included by force
// (-include) in front of the kernel's file, which stays as it is.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

static inline __m256i emulated_half(__m512i value, int at) {
  __m256i halves[2];
  __builtin_memcpy(halves, &value, sizeof halves);
  return halves[at];
}

template <typename Half>
static inline __m512i emulated_join_int(Half low, Half high) {
  const Half halves[2] = {low, high};
  __m512i value;
  __builtin_memcpy(&value, halves, sizeof value);
  return value;
}

static inline __m512 emulated_join(__m256 low, __m256 high) {
  const __m256 halves[2] = {low, high};
  __m512 value;
  __builtin_memcpy(&value, halves, sizeof value);
  return value;
}

static inline __m512i emulated_mulhi_epu16(__m512i a, __m512i b) {
  return emulated_join_int(_mm256_mulhi_epu16(emulated_half(a, 0), emulated_half(b, 0)),
                           _mm256_mulhi_epu16(emulated_half(a, 1), emulated_half(b, 1)));
}

static inline __m512 emulated_cvtepi32_ps(__m512i a) {
  return emulated_join(_mm256_cvtepi32_ps(emulated_half(a, 0)), _mm256_cvtepi32_ps(emulated_half(a, 1)));
}

static inline __m512 emulated_cvtph_ps(__m256i a) {
  return emulated_join(_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}

// SIMDe rounds the product; the kernels rely on one rounding.
static inline __m512 emulated_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  __m256 x[3][2];
  __builtin_memcpy(x[0], &a, sizeof a);
  __builtin_memcpy(x[1], &b, sizeof b);
  __builtin_memcpy(x[2], &c, sizeof c);
  return emulated_join(_mm256_fmadd_ps(x[0][0], x[1][0], x[2][0]), _mm256_fmadd_ps(x[0][1], x[1][1], x[2][1]));
}

#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps(a, b, c) emulated_fmadd_ps(a, b, c)
#define _mm512_mulhi_epu16(a, b) emulated_mulhi_epu16(a, b)
#define _mm512_cvtepi32_ps(a) emulated_cvtepi32_ps(a)
#define _mm512_cvtph_ps(a) emulated_cvtph_ps(a)
