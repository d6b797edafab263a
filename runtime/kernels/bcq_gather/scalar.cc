// SPDX-License-Identifier: Apache-2.0
// The specification of BcqGather in portable C++: rows of W in float32, plane 1 to plane q, then the offset.
#include "core/half.h"
#include "kernels/bcq_gather/kernel.h"

namespace bcq {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kWordBits = 32;

// y[j] += bit j of word ? alpha : -alpha, for a whole word; constant bounds, so that compilers vectorize.
void add_plane(uint32_t word, float alpha, float* y) {
  for (int j = 0; j < kWordBits; ++j) y[j] += (word & (uint32_t(1) << j)) ? alpha : -alpha;
}

// Inputs 32 chunk .. 32 chunk + 31 of row 16 tile + lane into y[32].
void decode_chunk(const GatherProblem& p, int64_t tile, int64_t lane, int64_t chunk, float* y) {
  const int64_t chunks = (p.K + kWordBits - 1) / kWordBits;
  const int64_t groups = (p.K - 1) / p.group_size + 1;
  const int64_t cell = tile * groups + chunk * kWordBits / p.group_size;
  const uint32_t* words = p.codes + (tile * chunks + chunk) * p.bits * kTileRows + lane;
  for (int j = 0; j < kWordBits; ++j) y[j] = 0.0f;
  add_plane(words[0], half_to_float(p.alpha_1[cell * kTileRows + lane]), y);
  for (int64_t i = 1; i < p.bits; ++i) {
    const uint16_t alpha = p.alpha_rest[(cell * (p.bits - 1) + i - 1) * kTileRows + lane];
    add_plane(words[i * kTileRows], half_to_float(alpha), y);
  }
  if (p.offset == nullptr) return;
  const float offset = half_to_float(p.offset[cell * kTileRows + lane]);
  for (int j = 0; j < kWordBits; ++j) y[j] += offset;
}

int64_t row_of(const GatherProblem& p, int64_t i) {
  const int64_t index =
      p.index_is_int32 ? static_cast<const int32_t*>(p.indices)[i] : static_cast<const int64_t*>(p.indices)[i];
  return index < 0 ? index + p.N : index;
}

void run(const GatherProblem& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = row_of(p, i);
    for (int64_t k = 0; k < p.K; k += kWordBits) {
      float chunk[kWordBits];
      decode_chunk(p, row / kTileRows, row % kTileRows, k / kWordBits, chunk);
      const int64_t count = p.K - k < kWordBits ? p.K - k : kWordBits;
      for (int64_t j = 0; j < count; ++j) p.y[i * p.K + k + j] = chunk[j];
    }
  }
}

}  // namespace

extern const GatherKernel kGather_scalar = {"scalar", "scalar", 0, run};

}  // namespace bcq
