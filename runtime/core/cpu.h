// SPDX-License-Identifier: Apache-2.0
// What this CPU can do, and how BCQ_ISA lowers it.
#pragma once

#include <cstdint>
#include <string>

namespace bcq {

// One name that BCQ_ISA takes, and all the flags that it stands for.
struct IsaLevel {
  const char* name;
  uint32_t flags;
};

uint32_t detect_cpu_flags();

// The flags that remain of `detected` under the level `name`. Writes `error` and returns 0 when the name is unknown or
// asks for more than `detected` has; an empty or null name changes nothing.
uint32_t lower_cpu_flags(const char* name, uint32_t detected, std::string& error);

const char* isa_name(uint32_t flags);

}  // namespace bcq
