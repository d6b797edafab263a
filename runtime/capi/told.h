// SPDX-License-Identifier: Apache-2.0
// How the C interface tells what went wrong inside: one clean line in the caller's buffer, and no exception.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>

#include "core/shown.h"

namespace bcq::capi {

// Names in a message may come from the file.
inline void tell(const char* text, char* why, size_t why_bytes) {
  if (why == nullptr || why_bytes == 0) return;
  try {
    const std::string line = shown(text, why_bytes - 1);
    std::memcpy(why, line.c_str(), line.size() + 1);
  } catch (const std::bad_alloc&) {
    std::snprintf(why, why_bytes, "out of memory");
  }
}

}  // namespace bcq::capi
