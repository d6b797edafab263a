// SPDX-License-Identifier: Apache-2.0
// What the kernels of BcqGather share: which row of W an index means, and where codes and factors of a row lie.
// Internal linkage on purpose: this header is included by files that are compiled for different CPUs.
#pragma once

#include "kernels/bcq_gather/kernel.h"

namespace bcq {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kWordBits = 32;

// The row of W that output row i is: a negative index counts from the end.
inline int64_t row_number(const GatherProblem& p, int64_t i) {
  const int64_t index =
      p.index_is_int32 ? static_cast<const int32_t*>(p.indices)[i] : static_cast<const int64_t*>(p.indices)[i];
  return index < 0 ? index + p.N : index;
}

// One row of W, from its first chunk and group on; the next words and factors lie kTileRows elements apart.
struct Row {
  const uint32_t* words;
  const uint16_t* alpha_1;
  const uint16_t* alpha_rest;  // nullptr where there is one plane
  const uint16_t* offset;      // or nullptr
};

inline Row row_at(const GatherProblem& p, int64_t number) {
  const int64_t tile = number / kTileRows, lane = number % kTileRows;
  const int64_t chunks = (p.K + kWordBits - 1) / kWordBits;
  const int64_t cell = tile * ((p.K - 1) / p.group_size + 1);
  return {p.codes + tile * chunks * p.planes * kTileRows + lane, p.alpha_1 + cell * kTileRows + lane,
          p.bits > 1 ? p.alpha_rest + cell * (p.bits - 1) * kTileRows + lane : nullptr,
          p.offset ? p.offset + cell * kTileRows + lane : nullptr};
}

// The factor, float16, of plane i in a group.
inline uint16_t plane_alpha(const Row& row, int64_t group, int64_t i, int64_t bits) {
  return i == 0 ? row.alpha_1[group * kTileRows] : row.alpha_rest[(group * (bits - 1) + i - 1) * kTileRows];
}

}  // namespace
}  // namespace bcq
