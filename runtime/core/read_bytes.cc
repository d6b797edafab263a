// SPDX-License-Identifier: Apache-2.0
// Reads memory as fast as one thread can, for benches: the roof under which kernels are judged.
#include <cstring>

#include "core/bcq_core.h"

namespace {

constexpr size_t kLine = 64;
constexpr size_t kWords = kLine / sizeof(uint64_t);
// One stream leaves a core waiting at every page's end; six streams keep its line buffers full (1.5x on Zen 3).
constexpr size_t kStreams = 6;
constexpr size_t kAhead = 8 * kLine;

inline void add_line(const char* line, uint64_t sums[kWords]) {
  for (size_t i = 0; i < kWords; ++i) {
    uint64_t word;
    std::memcpy(&word, line + i * sizeof(word), sizeof(word));
    sums[i] += word;
  }
}

}  // namespace

extern "C" uint64_t bcq_read_bytes(const void* from, size_t bytes) {
  const char* begin = static_cast<const char*>(from);
  // An odd number of lines a stream: streams a power of two apart would meet in the same sets of the caches.
  size_t lines = bytes / kLine / kStreams;
  if (lines % 2 == 0 && lines > 0) --lines;
  uint64_t sums[kWords] = {};
  for (size_t line = 0; line < lines; ++line) {
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const char* at = begin + (stream * lines + line) * kLine;
      __builtin_prefetch(at + kAhead);  // beyond the end it is only a hint
      add_line(at, sums);
    }
  }
  for (size_t at = kStreams * lines * kLine; at + kLine <= bytes; at += kLine) add_line(begin + at, sums);
  uint64_t sum = 0;
  for (const uint64_t word : sums) sum += word;
  return sum;
}
