// SPDX-License-Identifier: Apache-2.0
#include "core/cpu.h"

#include <cstdlib>
#include <cstring>

#include "core/bcq_core.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace bcq {
namespace {

constexpr uint32_t kAvx512 = BCQ_CPU_AVX2 | BCQ_CPU_AVX512;
constexpr uint32_t kAvx512Vnni = kAvx512 | BCQ_CPU_AVX512VBMI | BCQ_CPU_AVX512VNNI;
constexpr uint32_t kDotprod = BCQ_CPU_NEON | BCQ_CPU_DOTPROD;

// From the lowest to the highest; "avx512vnni" also keeps BF16 where the CPU has it.
constexpr IsaLevel kLevels[] = {
    {"scalar", 0},
    {"avx2", BCQ_CPU_AVX2},
    {"avx512", kAvx512},
    {"avx512vnni", kAvx512Vnni},
    {"neon", BCQ_CPU_NEON},
    {"dotprod", kDotprod},
};

uint32_t optional_flags(const IsaLevel& level) { return level.flags == kAvx512Vnni ? BCQ_CPU_AVX512BF16 : 0; }

std::string known_names() {
  std::string names;
  for (const IsaLevel& level : kLevels) names += (names.empty() ? "" : ", ") + std::string(level.name);
  return names;
}

// The beginning of a message that refuses a name: short, and printable whatever the environment holds.
std::string got(const char* name) {
  std::string shown = std::string(name).substr(0, 64);
  for (char& c : shown) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return "BCQ_ISA: got '" + shown + "', expected ";
}

}  // namespace

#if defined(__x86_64__) || defined(__i386__)
// Half-precision conversion has no name in __builtin_cpu_supports before GCC 11: leaf 1, ECX bit 29.
static bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1u) != 0;
}

uint32_t detect_cpu_flags() {
  __builtin_cpu_init();
  uint32_t flags = 0;
  // GCC's names also check that the operating system saves the registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) flags |= BCQ_CPU_AVX2;
  if (!(flags & BCQ_CPU_AVX2)) return flags;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    flags |= BCQ_CPU_AVX512;
    if (__builtin_cpu_supports("avx512vbmi")) flags |= BCQ_CPU_AVX512VBMI;
    if (__builtin_cpu_supports("avx512vnni")) flags |= BCQ_CPU_AVX512VNNI;
    if (__builtin_cpu_supports("avx512bf16")) flags |= BCQ_CPU_AVX512BF16;
  }
  return flags;
}
#elif defined(__aarch64__) && defined(__linux__)
uint32_t detect_cpu_flags() {
  const unsigned long capabilities = getauxval(AT_HWCAP);
  uint32_t flags = BCQ_CPU_NEON;
  if (capabilities & HWCAP_ASIMDDP) flags |= BCQ_CPU_DOTPROD;
  return flags;
}
#elif defined(__aarch64__)
uint32_t detect_cpu_flags() { return BCQ_CPU_NEON; }
#else
uint32_t detect_cpu_flags() { return 0; }
#endif

uint32_t lower_cpu_flags(const char* name, uint32_t detected, std::string& error) {
  error.clear();
  if (name == nullptr || *name == '\0') return detected;
  for (const IsaLevel& level : kLevels) {
    if (std::strcmp(level.name, name) != 0) continue;
    if ((level.flags & ~detected) == 0) return detected & (level.flags | optional_flags(level));
    error = got(name) + isa_name(detected) + " or lower, because this CPU has no more. Choose that or unset it.";
    return 0;
  }
  error = got(name) + "one of " + known_names() + ". Choose one or unset it.";
  return 0;
}

const char* isa_name(uint32_t flags) {
  const char* best = kLevels[0].name;
  for (const IsaLevel& level : kLevels) {
    if ((level.flags & ~flags) == 0) best = level.name;
  }
  return best;
}

}  // namespace bcq

extern "C" {

uint32_t bcq_detected_cpu_flags(void) {
  static const uint32_t flags = bcq::detect_cpu_flags();
  return flags;
}

uint32_t bcq_cpu_flags(void) {
  std::string error;
  return bcq::lower_cpu_flags(std::getenv("BCQ_ISA"), bcq_detected_cpu_flags(), error);
}

const char* bcq_isa_error(void) {
  static thread_local std::string error;
  bcq::lower_cpu_flags(std::getenv("BCQ_ISA"), bcq_detected_cpu_flags(), error);
  return error.empty() ? nullptr : error.c_str();
}

const char* bcq_isa_name(uint32_t flags) { return bcq::isa_name(flags); }

}  // extern "C"
