// SPDX-License-Identifier: Apache-2.0
// Stands for core/cpu.cc in a library for one instruction set: no detection, no environment, no C++ library. Whoever
// builds it vouches for the CPU.
#include "core/bcq_core.h"

extern "C" {

uint32_t bcq_detected_cpu_flags(void) { return BCQ_ONE_ISA_FLAGS; }
uint32_t bcq_cpu_flags(void) { return BCQ_ONE_ISA_FLAGS; }

}  // extern "C"
