// SPDX-License-Identifier: Apache-2.0
// Lines of the cache, on which vectors, and parts of different threads, begin.
#pragma once

#include <cstddef>

namespace bcq {

// Bytes up to the next line.
static inline size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace bcq
