// SPDX-License-Identifier: Apache-2.0
// The kernel for three rows of A and more, float16 or bfloat16: weights are decoded into registers (weights.h), the
// activations of a stage lie in shared memory, and a warp multiplies both. Runs on every device.
#pragma once

#include "cuda/weights.h"

namespace bcq::cuda {

constexpr int kTilesThreads = 256;

// nt: columns of 8 tokens that a block computes.
template <int nt>
struct TilesShape {
  static constexpr int kTokens = 8 * nt;
  static constexpr int kRowWarps = nt == 1 ? 1 : nt < 8 ? 2 : 4;  // each with its own 32 rows
  static constexpr int kRows = kBlockRows * kRowWarps;
  static constexpr int kTasks = (nt + kRowWarps - 1) / kRowWarps;  // chunks of activations that a thread brings
  static constexpr int kChunkWords = kTokens * kWordBits / 2 + 4;  // the last 4 keep lanes t in other banks
  static constexpr int kStageWords = kStageChunks * kChunkWords;

  // Shared memory of a block whose warps split K into `splits` parts: two slots of activations, tables of each warp.
  template <int planes>
  BCQ_HD static int bytes(int splits) {
    return 4 * splits * (2 * kStageWords + kRowWarps * Table<planes>::kWarpWords);
  }
};

// One warp of a block: 32 rows of W, every `splits`-th stage of K, all tokens of the block.
template <bool brain, int planes, int nt>
struct TilesWarp {
  using Shape = TilesShape<nt>;
  using Weights = Table<planes>;
  using Rows = WeightRows<brain, planes>;

  const MatMul& p;
  const bool aligned;
  const int splits, lane, row_warp, split;
  uint32_t* const activations;  // [2][splits][kStageWords]
  Rows weights;

  uint32_t chunks[Shape::kTasks][16];
  float sums[2][nt][4];

  BCQ_DEVICE TilesWarp(const MatMul& problem, bool vectors)
      : p(problem),
        aligned(vectors),
        splits(simt::threads() / (kWarp * Shape::kRowWarps)),
        lane(simt::thread() % kWarp),
        row_warp(simt::thread() / kWarp % Shape::kRowWarps),
        split(simt::thread() / kWarp / Shape::kRowWarps),
        activations(reinterpret_cast<uint32_t*>(simt::shared())),
        weights{p, lane, simt::block_x() * Shape::kRowWarps + row_warp,
                activations + 2 * splits * Shape::kStageWords + simt::thread() / kWarp * Weights::kWarpWords, {}, {}},
        sums{} {}

  // The chunks of activations that this thread brings: token task % kTokens, chunk task / kTokens of the stage.
  BCQ_DEVICE int task(int i) const { return i * Shape::kRows + row_warp * kWarp + lane; }
  BCQ_DEVICE bool has_task(int i) const { return task(i) < Shape::kTokens * kStageChunks; }

  BCQ_DEVICE void load_activations(int stage) {
    BCQ_UNROLL
    for (int i = 0; i < Shape::kTasks; ++i) {
      if (!has_task(i)) continue;
      const int64_t m = int64_t(simt::block_y()) * Shape::kTokens + task(i) % Shape::kTokens;
      const int64_t k = int64_t(stage * kStageChunks + task(i) / Shape::kTokens) * kWordBits;
      const int64_t left = m < p.given.M ? p.layout.K - k : 0;
      const uint16_t* const from = static_cast<const uint16_t*>(p.given.a) + m * p.given.a_stride + k;
      BCQ_UNROLL
      for (int b = 0; b < 4; ++b) {
        const Words4 words = load_eight(from + 8 * b, aligned, int(left) - 8 * b);
        BCQ_UNROLL
        for (int j = 0; j < 4; ++j) chunks[i][4 * b + j] = words.at[j];
      }
    }
  }

  BCQ_DEVICE void store_activations(int slot) {
    uint32_t* const to = activations + (slot * splits + split) * Shape::kStageWords;
    BCQ_UNROLL
    for (int i = 0; i < Shape::kTasks; ++i) {
      if (!has_task(i)) continue;
      uint32_t* const row =
          to + task(i) / Shape::kTokens * Shape::kChunkWords + task(i) % Shape::kTokens * (kWordBits / 2);
      BCQ_UNROLL
      for (int w = 0; w < 16; w += 4) {
        simt::store_shared4(row + w, {{ordered_word(chunks[i], w), ordered_word(chunks[i], w + 1),
                                       ordered_word(chunks[i], w + 2), ordered_word(chunks[i], w + 3)}});
      }
    }
  }

  // The stage's part of all sums.
  BCQ_DEVICE void multiply(const typename Rows::Decoder& d, int slot) {
    const int t = lane & 3, g = lane >> 2;
    const uint32_t* const b = activations + (slot * splits + split) * Shape::kStageWords + t * Shape::kChunkWords + g * 16;
    BCQ_UNROLL
    for (int s = 0; s < 4; ++s) {
      uint32_t a[2][2][4];  // half, row fragment, register
      weights.fragments(d, s, 0, a[0]);
      weights.fragments(d, s, 1, a[1]);
      BCQ_UNROLL
      for (int n = 0; n < nt; ++n) {
        const Words4 w = simt::shared4(b + n * 8 * 16 + 4 * s);
        BCQ_UNROLL
        for (int h = 0; h < 2; ++h) {
          BCQ_UNROLL
          for (int f = 0; f < 2; ++f) {
            if (brain) simt::mma_brains(sums[f][n], a[h][f], w.at[2 * h], w.at[2 * h + 1]);
            else simt::mma_halves(sums[f][n], a[h][f], w.at[2 * h], w.at[2 * h + 1]);
          }
        }
      }
    }
  }

  // Adds up the parts of K in their order and writes the outputs of the block.
  BCQ_DEVICE void finish() {
    float* const parts = reinterpret_cast<float*>(activations);  // [splits][row warps][tokens][32 rows]
    float* const mine = parts + simt::thread() / kWarp * Shape::kTokens * kBlockRows;
    simt::sync();  // activations have been read
    BCQ_UNROLL
    for (int f = 0; f < 2; ++f) {
      BCQ_UNROLL
      for (int n = 0; n < nt; ++n) {
        BCQ_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int token = n * 8 + (lane & 3) * 2 + i % 2;
          mine[token * kBlockRows + lane_first_row(lane) + 2 * f + i / 2] = sums[f][n][i];
        }
      }
    }
    simt::sync();
    for (int i = simt::thread(); i < Shape::kRows * Shape::kTokens; i += simt::threads()) {
      const int row = i % Shape::kRows, token = i / Shape::kRows;
      const int64_t m = int64_t(simt::block_y()) * Shape::kTokens + token, n = int64_t(simt::block_x()) * Shape::kRows + row;
      float sum = 0.0f;
      for (int k = 0; k < splits; ++k) {
        sum += parts[((k * Shape::kRowWarps + row / kBlockRows) * Shape::kTokens + token) * kBlockRows + row % kBlockRows];
      }
      if (m < p.given.M && n < p.layout.N) store_value(p.given.y, size_t(m * p.given.y_stride + n), p.given.type, sum);
    }
  }
};

template <bool brain, int planes, int nt>
BCQ_KERNEL(kTilesThreads, nt < 8 ? 2 : 1) tiles_kernel(MatMul p, bool aligned) {
  TilesWarp<brain, planes, nt> warp(p, aligned);
  const int stages = (p.layout.chunks + kStageChunks - 1) / kStageChunks;
  const int rounds = (stages + warp.splits - 1) / warp.splits;
  warp.weights.load_words(warp.split);
  warp.load_activations(warp.split);
  warp.weights.load_factors(group_of(p.layout, warp.split * kStageChunks));
  for (int round = 0; round < rounds; ++round) {
    // What has been used is loaded again at once, for the next round; behind the last one it is not used.
    const int stage = round * warp.splits + warp.split, next = stage + warp.splits, slot = round & 1;
    warp.store_activations(slot);
    if (round + 1 < rounds) warp.load_activations(next);
    warp.weights.store_tables(stage);
    warp.weights.load_factors(group_of(p.layout, next * kStageChunks));
    simt::sync();
    const auto decoder = warp.weights.decoder(stage);
    warp.weights.load_words(next);
    warp.multiply(decoder, slot);
  }
  warp.finish();
}

}  // namespace bcq::cuda
