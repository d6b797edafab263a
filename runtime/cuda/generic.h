// SPDX-License-Identifier: Apache-2.0
// The kernel that takes everything: any number of planes, any type, float32 sums throughout (accuracy level 1).
// A thread has one row of W and up to four rows of A; the warps of a block split K.
#pragma once

#include "cuda/problem.h"

namespace bcq::cuda {

constexpr int kGenericWarps = 8;
constexpr int kGenericTokens = 4;
constexpr int kMostPlanes = 8;

// sum += the activations of one chunk with the signs of a word; those behind `count` do not exist.
BCQ_DEVICE float signed_sum(const MatMul& p, int64_t m, int chunk, int count, uint32_t word) {
  float sum = 0.0f;
  for (int j = 0; j < count; ++j) {
    const uint32_t minus = (~word >> j & 1u) << 31;
    sum += simt::as_float(simt::as_bits(activation(p, m, chunk * kWordBits + j)) ^ minus);
  }
  return sum;
}

// What one chunk adds to the outputs of row `row` of a tile.
BCQ_DEVICE void add_chunk(const MatMul& p, int tile, int row, int chunk, float (&y)[kGenericTokens]) {
  const Layout& l = p.layout;
  const int group = chunk / l.group_chunks;
  const int left = l.K - chunk * kWordBits, count = left < kWordBits ? left : kWordBits;
  for (int token = 0; token < kGenericTokens; ++token) {
    const int64_t m = int64_t(simt::block_y()) * kGenericTokens + token;
    if (m >= p.given.M) return;
    for (int i = 0; i < p.given.bits; ++i) {
      const uint16_t alpha = i == 0 ? simt::load(p.given.alpha_1 + factor_at(l, tile, group, row))
                                    : simt::load(p.given.alpha_rest + rest_at(l, tile, group, i, row));
      const uint32_t word = simt::load(p.given.codes + word_at(l, tile, chunk, i, row));
      y[token] = simt::fused(simt::half_value(alpha), signed_sum(p, m, chunk, count, word), y[token]);
    }
    if (p.given.offset == nullptr) continue;
    const float offset = simt::half_value(simt::load(p.given.offset + factor_at(l, tile, group, row)));
    y[token] = simt::fused(offset, signed_sum(p, m, chunk, count, 0xffffffffu), y[token]);
  }
}

BCQ_KERNEL(kGenericWarps * kWarp, 2) generic_kernel(MatMul p) {
  const int warp = simt::thread() / kWarp, lane = simt::thread() % kWarp;
  float* const parts = reinterpret_cast<float*>(simt::shared());  // [warps][tokens][32 rows]
  const int tile = 2 * simt::block_x() + lane / kTileRows;
  float y[kGenericTokens] = {};
  if (tile < tiles(p.layout)) {
    for (int chunk = warp; chunk < p.layout.chunks; chunk += kGenericWarps) add_chunk(p, tile, lane % kTileRows, chunk, y);
  }
  for (int token = 0; token < kGenericTokens; ++token) parts[(warp * kGenericTokens + token) * kWarp + lane] = y[token];
  simt::sync();
  const int token = simt::thread() / kWarp;
  const int64_t m = int64_t(simt::block_y()) * kGenericTokens + token, n = int64_t(simt::block_x()) * kBlockRows + lane;
  if (token >= kGenericTokens || m >= p.given.M || n >= p.layout.N) return;
  float sum = 0.0f;
  for (int w = 0; w < kGenericWarps; ++w) sum += parts[(w * kGenericTokens + token) * kWarp + lane];
  store_value(p.given.y, size_t(m * p.given.y_stride + n), p.given.type, sum);
}

}  // namespace bcq::cuda
