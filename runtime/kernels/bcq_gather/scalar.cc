// SPDX-License-Identifier: Apache-2.0
// The specification of BcqGather in portable C++: rows of W in float32, plane 1 to plane q, then the offset.
#include "core/half.h"
#include "kernels/bcq_gather/rows.h"

namespace bcq {
namespace {

// y[j] += bit j of word ? alpha : -alpha, for a whole word; constant bounds, so that compilers vectorize.
void add_plane(uint32_t word, float alpha, float* y) {
  for (int j = 0; j < kWordBits; ++j) y[j] += (word & (uint32_t(1) << j)) ? alpha : -alpha;
}

// Inputs 32 chunk .. 32 chunk + 31 of a row into y[32].
void decode_chunk(const GatherProblem& p, const Row& row, int64_t chunk, float* y) {
  const int64_t group = chunk * kWordBits / p.group_size;
  const uint32_t* words = row.words + chunk * p.planes * kTileRows;
  for (int j = 0; j < kWordBits; ++j) y[j] = 0.0f;
  for (int64_t i = 0; i < p.bits; ++i) {
    add_plane(words[i * kTileRows], half_to_float(plane_alpha(row, group, i, p.bits)), y);
  }
  if (row.offset == nullptr) return;
  const float offset = half_to_float(row.offset[group * kTileRows]);
  for (int j = 0; j < kWordBits; ++j) y[j] += offset;
}

void run(const GatherProblem& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Row row = row_at(p, row_number(p, i));
    for (int64_t k = 0; k < p.K; k += kWordBits) {
      float chunk[kWordBits];
      decode_chunk(p, row, k / kWordBits, chunk);
      const int64_t count = p.K - k < kWordBits ? p.K - k : kWordBits;
      for (int64_t j = 0; j < count; ++j) p.y[i * p.K + k + j] = canonical(chunk[j]);
    }
  }
}

}  // namespace

extern const GatherKernel kGather_scalar = {"scalar", "scalar", 0, run};

}  // namespace bcq
