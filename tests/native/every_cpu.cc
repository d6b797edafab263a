// SPDX-License-Identifier: Apache-2.0
// In place of core/cpu.cc in a test build whose kernels are emulated: a CPU that has everything.
#include "core/bcq_core.h"

extern "C" {

uint32_t bcq_detected_cpu_flags(void) { return ~0u; }
uint32_t bcq_cpu_flags(void) { return ~0u; }
const char* bcq_isa_error(void) { return nullptr; }
const char* bcq_isa_name(uint32_t) { return "emulated"; }
const char* bcq_contract(void) { return ""; }

}  // extern "C"
