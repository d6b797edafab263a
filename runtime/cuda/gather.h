// SPDX-License-Identifier: Apache-2.0
// BcqGather: a warp decodes 32 neighbouring inputs of one row at a time, a lane each, with the sums of
// kernels/bcq_gather/scalar.cc: plane 1 to plane q in float32, then the offset.
#pragma once

#include "cuda/problem.h"

namespace bcq::cuda {

constexpr int kGatherWarps = 8;
constexpr int kGatherChunks = 32;  // of a row that one block takes

struct Gather {
  BcqCudaGather given;
  Layout layout;
};

// The row of W that an index means, or -1.
BCQ_DEVICE int64_t row_of_index(const Gather& p, int64_t i) {
  const int64_t index = p.given.index_is_int32 ? int64_t(simt::load(static_cast<const int32_t*>(p.given.indices) + i))
                                               : simt::load(static_cast<const int64_t*>(p.given.indices) + i);
  const int64_t row = index < 0 ? index + p.given.N : index;
  return row < p.given.N ? row : -1;
}

BCQ_DEVICE float weight_of(const Gather& p, int tile, int row, int chunk, int bit) {
  const Layout& l = p.layout;
  const int group = chunk / l.group_chunks;
  float sum = 0.0f;
  for (int i = 0; i < p.given.bits; ++i) {
    const uint16_t alpha = i == 0 ? simt::load(p.given.alpha_1 + factor_at(l, tile, group, row))
                                  : simt::load(p.given.alpha_rest + rest_at(l, tile, group, i, row));
    const uint32_t minus = (~simt::load(p.given.codes + word_at(l, tile, chunk, i, row)) >> bit & 1u) << 31;
    sum += simt::as_float(simt::as_bits(simt::half_value(alpha)) ^ minus);
  }
  return p.given.offset == nullptr ? sum : sum + simt::half_value(simt::load(p.given.offset + factor_at(l, tile, group, row)));
}

// Blocks along x take parts of a row; along y they walk through the indices.
BCQ_KERNEL(kGatherWarps * kWarp, 4) gather_kernel(Gather p, int rows_at_once) {
  const int warp = simt::thread() / kWarp, lane = simt::thread() % kWarp;
  const int first = simt::block_x() * kGatherChunks;
  const int end = first + kGatherChunks < p.layout.chunks ? first + kGatherChunks : p.layout.chunks;
  for (int64_t i = simt::block_y(); i < p.given.count; i += rows_at_once) {
    const int64_t row = row_of_index(p, i);
    for (int chunk = first + warp; chunk < end; chunk += kGatherWarps) {
      const int k = chunk * kWordBits + lane;
      if (k >= p.layout.K) continue;
      const float weight = row < 0 ? simt::as_float(0x7fc00000u)
                                   : weight_of(p, int(row / kTileRows), int(row % kTileRows), chunk, lane);
      store_value(p.given.y, size_t(i * p.given.K + k), p.given.type, weight);
    }
  }
}

}  // namespace bcq::cuda
