// SPDX-License-Identifier: Apache-2.0
// IEEE 754 binary16 and bfloat16 to binary32 and back in portable integer code; rounds to nearest, ties to even; NaN
// stays NaN.
// Internal linkage on purpose: this header is included by files that are compiled for different CPUs.
#pragma once

#include <cstdint>
#include <cstring>

namespace bcq {

static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// One NaN for all: which operand's sign and payload an instruction keeps depends on how a compiler orders its operands.
constexpr uint32_t kNanBits = 0x7fc00000u;

static inline float canonical(float value) { return value == value ? value : bits_to_float(kNanBits); }

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // A subnormal half is magnitude * 2^-24, exact in float32; a normal one only moves its exponent bias by 112.
  if (magnitude < 0x400u) return bits_to_float(sign | float_to_bits(float(magnitude) * 0x1p-24f));
  return bits_to_float(sign | ((magnitude << 13) + (112u << 23)));
}

static inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal: adding 0.5 makes the float unit round to multiples of 2^-24.
    return uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f)));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return uint16_t(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
}

// bfloat16 is the upper half of a float32.
static inline float brain_to_float(uint16_t brain) { return bits_to_float(uint32_t(brain) << 16); }

static inline uint16_t float_to_brain(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace bcq
