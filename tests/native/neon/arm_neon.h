// SPDX-License-Identifier: Apache-2.0
// NEON on an x86 CPU with AVX2, for tests: SIMDe under the native names, and what SIMDe 0.7 lacks or rounds otherwise.
// Stands for a compiler's own <arm_neon.h>, by a folder in the search path; the kernels' files stay as they are.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h>
#include <simde/arm/neon.h>

template <typename To, typename From>
static inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits in another type");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// Rounds to nearest, ties to even.
static inline int32x4_t emulated_cvtnq(float32x4_t x) {
  return emulated_bits<int32x4_t>(_mm_cvtps_epi32(emulated_bits<__m128>(x)));
}

static inline float32x4_t emulated_from_halves(uint16x4_t x) {
  __m128i halves = _mm_setzero_si128();
  __builtin_memcpy(&halves, &x, sizeof x);
  return emulated_bits<float32x4_t>(_mm_cvtph_ps(halves));
}

static inline uint16x4_t emulated_to_halves(float32x4_t x) {
  const __m128i halves = _mm_cvtps_ph(emulated_bits<__m128>(x), _MM_FROUND_TO_NEAREST_INT);
  uint16x4_t low;
  __builtin_memcpy(&low, &halves, sizeof low);
  return low;
}

#undef vcvtnq_s32_f32
#undef vreinterpret_f16_u16
#undef vreinterpret_u16_f16
#undef vcvt_f32_f16
#undef vcvt_f16_f32
#define vcvtnq_s32_f32(x) emulated_cvtnq(x)
#define vreinterpret_f16_u16(x) (x)
#define vreinterpret_u16_f16(x) (x)
#define vcvt_f32_f16(x) emulated_from_halves(x)
#define vcvt_f16_f32(x) emulated_to_halves(x)
