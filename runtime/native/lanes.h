// SPDX-License-Identifier: Apache-2.0
// Sums over many floats: in 16 lanes whatever the CPU has, which are added up in one order at the end.
#pragma once

#include <cstdint>
#include <cstring>

namespace bcq::native {

typedef float Four __attribute__((vector_size(16)));

static inline Four four(const float* from) {
  Four value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

static inline float total_of(Four a, Four b, Four c, Four d) {
  const Four all = (a + b) + (c + d);
  return (all[0] + all[1]) + (all[2] + all[3]);
}

static inline float dot(const float* a, const float* b, int64_t n) {
  Four lanes[4] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    lanes[0] += four(a + i) * four(b + i);
    lanes[1] += four(a + i + 4) * four(b + i + 4);
    lanes[2] += four(a + i + 8) * four(b + i + 8);
    lanes[3] += four(a + i + 12) * four(b + i + 12);
  }
  float all = total_of(lanes[0], lanes[1], lanes[2], lanes[3]);
  for (; i < n; ++i) all += a[i] * b[i];
  return all;
}

static inline float sum(const float* a, int64_t n) {
  Four lanes[4] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += four(a + i + 4 * lane);
  }
  float all = total_of(lanes[0], lanes[1], lanes[2], lanes[3]);
  for (; i < n; ++i) all += a[i];
  return all;
}

}  // namespace bcq::native
