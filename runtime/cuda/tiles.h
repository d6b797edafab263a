// SPDX-License-Identifier: Apache-2.0
// The kernel for three rows of A and more, float16 or bfloat16: weights become 16-bit floats in registers, as first
// operand of the tensor cores, and no dequantized copy exists anywhere.
//
// A group of a row has 2^q different weights, sums of +-alphas and the offset, each rounded once. They lie in shared
// memory as bytes, low and high ones apart, so that one byte permutation looks up four weights: its selector is four
// nibbles, each the bits of one input in all planes. Nibbles collect inputs s, s + 4, s + 8 ..., and the activations are
// stored in the order in which that makes the weights.
#pragma once

#include "cuda/problem.h"

namespace bcq::cuda {

constexpr int kStageChunks = 4;  // lane t takes chunk t of a stage
constexpr int kTilesThreads = 256;

template <int planes>
struct Table {
  static constexpr int kEntries = 1 << planes;
  static constexpr int kWords = planes > 3 ? 8 : 4;  // of one row: low bytes, then high bytes
  static constexpr int kHigh = kWords / 2;           // where the high bytes begin
  static constexpr int kGroupWords = kBlockRows * kWords + 4;  // the last 4 keep the groups of a stage in other banks
  static constexpr int kWarpWords = kStageChunks * kGroupWords;
};

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

// Word 2 u + i of a chunk of activations in the order of the weights, from words of inputs (2 w, 2 w + 1): matrix
// instruction u = 2 s + h takes inputs s + 16 h and s + 4 + 16 h, then s + 8 + 16 h and s + 12 + 16 h.
BCQ_HD int ordered_input(int word) { return word / 4 + 16 * (word / 2 % 2) + 8 * (word % 2); }

BCQ_DEVICE uint32_t ordered_word(const uint32_t (&natural)[16], int word) {
  const int first = ordered_input(word);
  return simt::permute(natural[first / 2], natural[first / 2 + 2], first % 2 == 0 ? 0x5410 : 0x7632);
}

// Nibble n of selectors[s] has the bits of input 4 n + s in the first three planes.
template <int planes>
BCQ_DEVICE void make_selectors(const uint32_t (&w)[planes], uint32_t (&selectors)[4]) {
  if constexpr (planes == 1) {
    BCQ_UNROLL
    for (int s = 0; s < 4; ++s) selectors[s] = w[0] >> s & 0x11111111u;
  } else {
    constexpr uint32_t even = 0x55555555u, two = 0x33333333u;
    const uint32_t x = (w[0] & even) | (w[1] << 1 & ~even), y = (w[0] >> 1 & even) | (w[1] & ~even);
    const uint32_t pairs[4] = {x, y, x >> 2, y >> 2};
    if constexpr (planes == 2) {
      BCQ_UNROLL
      for (int s = 0; s < 4; ++s) selectors[s] = pairs[s] & two;
    } else {
      const uint32_t third[4] = {w[2] << 2, w[2] << 1, w[2], w[2] >> 1};
      BCQ_UNROLL
      for (int s = 0; s < 4; ++s) selectors[s] = ((pairs[s] & two) | (third[s] & ~two)) & 0x77777777u;
    }
  }
}

// Four weights, low nibble first, as two words of two; `fourth` has the bits of plane 4 where there is one.
template <int planes>
BCQ_DEVICE void look_up(const uint32_t (&table)[Table<planes>::kWords], uint32_t selector, uint32_t fourth, uint32_t& first,
                        uint32_t& second) {
  constexpr int high = Table<planes>::kHigh;
  uint32_t lows = simt::permute(table[0], table[1], selector);
  uint32_t highs = simt::permute(table[high], table[high + 1], selector);
  if constexpr (planes == 4) {
    const uint32_t mask = simt::permute(0x0000ff00u, 0u, fourth & 0x1111u);
    lows = (lows & ~mask) | (simt::permute(table[2], table[3], selector) & mask);
    highs = (highs & ~mask) | (simt::permute(table[6], table[7], selector) & mask);
  }
  first = simt::permute(lows, highs, 0x5140);
  second = simt::permute(lows, highs, 0x7362);
}

// The factors of one row and group: alphas, then the offset, float16 as they are.
template <int planes>
struct Factors {
  uint16_t at[planes + 1];
};

// All weights that a row can have in a group, into shared memory.
template <bool brain, int planes>
BCQ_DEVICE void store_table(const Factors<planes>& f, uint32_t* to) {
  constexpr int entries = Table<planes>::kEntries < 4 ? 4 : Table<planes>::kEntries;
  float weights[entries] = {};
  weights[0] = simt::half_value(f.at[planes]);
  BCQ_UNROLL
  for (int i = 0; i < planes; ++i) {
    const float alpha = simt::half_value(f.at[i]);
    BCQ_UNROLL
    for (int x = 0; x < 1 << i; ++x) {
      weights[x + (1 << i)] = weights[x] + alpha;
      weights[x] = weights[x] - alpha;
    }
  }
  uint32_t words[Table<planes>::kWords] = {};
  BCQ_UNROLL
  for (int x = 0; x < entries; x += 4) {
    const uint32_t first = brain ? simt::brain_pair(weights[x], weights[x + 1]) : simt::half_pair(weights[x], weights[x + 1]);
    const uint32_t second =
        brain ? simt::brain_pair(weights[x + 2], weights[x + 3]) : simt::half_pair(weights[x + 2], weights[x + 3]);
    words[x / 4] = simt::permute(first, second, 0x6420);
    words[Table<planes>::kHigh + x / 4] = simt::permute(first, second, 0x7531);
  }
  BCQ_UNROLL
  for (int i = 0; i < Table<planes>::kWords; i += 4) {
    simt::store_shared4(to + i, {{words[i], words[i + 1], words[i + 2], words[i + 3]}});
  }
}

// 32 activations from `from` on, zeros behind the first `left`.
BCQ_DEVICE void load_chunk(const uint16_t* from, bool aligned, int left, uint32_t (&words)[16]) {
  if (aligned && left >= kWordBits) {
    BCQ_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Words4 w = simt::load4(from + 8 * i);
      BCQ_UNROLL
      for (int j = 0; j < 4; ++j) words[4 * i + j] = w.at[j];
    }
    return;
  }
  BCQ_UNROLL
  for (int i = 0; i < 16; ++i) {
    const uint32_t low = 2 * i < left ? simt::load(from + 2 * i) : 0u;
    const uint32_t high = 2 * i + 1 < left ? simt::load(from + 2 * i + 1) : 0u;
    words[i] = low | high << 16;
  }
}

// One warp of a block: 32 rows of W, every `splits`-th stage of K, all tokens of the block.
template <bool brain, int planes, int nt>
struct TilesWarp {
  using Shape = TilesShape<nt>;
  using Weights = Table<planes>;

  const MatMul& p;
  const bool aligned;
  const int splits, lane, row_warp, split, row_block;
  uint32_t* const activations;  // [2][splits][kStageWords]
  uint32_t* const tables;       // this warp's

  Words4 words[planes];
  uint32_t chunks[Shape::kTasks][16];
  Factors<planes> factors;
  float sums[2][nt][4];

  BCQ_DEVICE TilesWarp(const MatMul& problem, bool vectors)
      : p(problem),
        aligned(vectors),
        splits(simt::threads() / (kWarp * Shape::kRowWarps)),
        lane(simt::thread() % kWarp),
        row_warp(simt::thread() / kWarp % Shape::kRowWarps),
        split(simt::thread() / kWarp / Shape::kRowWarps),
        row_block(simt::block_x() * Shape::kRowWarps + row_warp),
        activations(reinterpret_cast<uint32_t*>(simt::shared())),
        tables(activations + 2 * splits * Shape::kStageWords + simt::thread() / kWarp * Weights::kWarpWords),
        sums{} {}

  // The chunks of activations that this thread brings: token task % kTokens, chunk task / kTokens of the stage.
  BCQ_DEVICE int task(int i) const { return i * Shape::kRows + row_warp * kWarp + lane; }
  BCQ_DEVICE bool has_task(int i) const { return task(i) < Shape::kTokens * kStageChunks; }

  // What lies behind the last tile or chunk is read from the last one: nobody stores its results, or its activations
  // are zero.
  BCQ_DEVICE int inside(int tile) const { return tile < tiles(p.layout) ? tile : tiles(p.layout) - 1; }

  BCQ_DEVICE void load_words(int stage) {
    const LaneRows rows = lane_rows(lane);
    const int chunk = stage * kStageChunks + (lane & 3), last = p.layout.chunks - 1;
    const uint32_t unit = word_unit(p.layout, inside(2 * row_block + rows.tile), chunk < last ? chunk : last, rows.row);
    BCQ_UNROLL
    for (int i = 0; i < planes; ++i) words[i] = simt::load_once(p.given.codes + 4 * size_t(unit) + kTileRows * i);
  }

  BCQ_DEVICE void load_activations(int stage) {
    BCQ_UNROLL
    for (int i = 0; i < Shape::kTasks; ++i) {
      if (!has_task(i)) continue;
      const int64_t m = int64_t(simt::block_y()) * Shape::kTokens + task(i) % Shape::kTokens;
      const int64_t k = int64_t(stage * kStageChunks + task(i) / Shape::kTokens) * kWordBits;
      const int64_t left = m < p.given.M ? p.layout.K - k : 0;
      load_chunk(static_cast<const uint16_t*>(p.given.a) + m * p.given.a_stride + k, aligned, int(left), chunks[i]);
    }
  }

  // The factors of a group for the row of this warp that has the lane's number.
  BCQ_DEVICE void load_factors(int group) {
    const Layout& l = p.layout;
    const int tile = inside(2 * row_block + lane / kTileRows), row = lane % kTileRows;
    const size_t first = 4 * size_t(factor_unit(l, tile, group, 0)) + row;
    factors.at[0] = simt::load(p.given.alpha_1 + first);
    if constexpr (planes > 1) {
      const uint16_t* const rest = p.given.alpha_rest + 4 * size_t(rest_unit(l, tile, group, 0)) + row;
      BCQ_UNROLL
      for (int i = 1; i < planes; ++i) factors.at[i] = simt::load(rest + kTileRows * (i - 1));
    }
    factors.at[planes] = p.given.offset == nullptr ? uint16_t(0) : simt::load(p.given.offset + first);
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

  // Tables of all groups of a stage; the factors of the first one are there already.
  BCQ_DEVICE void store_tables(int stage) {
    const int first = group_of(p.layout, stage * kStageChunks);
    const int count = group_of(p.layout, stage * kStageChunks + kStageChunks - 1) - first + 1;
    simt::sync_warp();  // the last stage's tables have been read
    store_table<brain, planes>(factors, tables + lane * Weights::kWords);
    for (int i = 1; i < count; ++i) {
      load_factors(first + i);
      store_table<brain, planes>(factors, tables + i * Weights::kGroupWords + lane * Weights::kWords);
    }
  }

  // Table, selectors and plane 4 of each of the lane's rows.
  struct Decoder {
    uint32_t table[4][Weights::kWords];
    uint32_t selectors[4][4];
    uint32_t fourth[4];
  };

  BCQ_DEVICE Decoder decoder(int stage) const {
    Decoder d;
    const int group =
        group_of(p.layout, stage * kStageChunks + (lane & 3)) - group_of(p.layout, stage * kStageChunks);
    const uint32_t* const from = tables + group * Weights::kGroupWords + lane_first_row(lane) * Weights::kWords;
    BCQ_UNROLL
    for (int j = 0; j < 4; ++j) {
      BCQ_UNROLL
      for (int i = 0; i < Weights::kWords; i += 4) {
        const Words4 w = simt::shared4(from + j * Weights::kWords + i);
        BCQ_UNROLL
        for (int k = 0; k < 4; ++k) d.table[j][i + k] = w.at[k];
      }
      uint32_t row[planes];
      BCQ_UNROLL
      for (int i = 0; i < planes; ++i) row[i] = words[i].at[j];
      make_selectors<planes>(row, d.selectors[j]);
      d.fourth[j] = row[planes - 1];
    }
    return d;
  }

  // The stage's part of all sums.
  BCQ_DEVICE void multiply(const Decoder& d, int slot) {
    const int t = lane & 3, g = lane >> 2;
    const uint32_t* const b = activations + (slot * splits + split) * Shape::kStageWords + t * Shape::kChunkWords + g * 16;
    BCQ_UNROLL
    for (int s = 0; s < 4; ++s) {
      uint32_t a[2][2][4];  // half, fragment, register
      BCQ_UNROLL
      for (int j = 0; j < 4; ++j) {
        BCQ_UNROLL
        for (int h = 0; h < 2; ++h) {
          look_up<planes>(d.table[j], d.selectors[j][s] >> 16 * h, planes > 3 ? d.fourth[j] >> (s + 16 * h) : 0u,
                          a[h][j / 2][j % 2], a[h][j / 2][j % 2 + 2]);
        }
      }
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
  warp.load_words(warp.split);
  warp.load_activations(warp.split);
  warp.load_factors(group_of(p.layout, warp.split * kStageChunks));
  for (int round = 0; round < rounds; ++round) {
    // What has been used is loaded again at once, for the next round; behind the last one it is not used.
    const int stage = round * warp.splits + warp.split, next = stage + warp.splits, slot = round & 1;
    warp.store_activations(slot);
    if (round + 1 < rounds) warp.load_activations(next);
    warp.store_tables(stage);
    warp.load_factors(group_of(p.layout, next * kStageChunks));
    simt::sync();
    const typename TilesWarp<brain, planes, nt>::Decoder decoder = warp.decoder(stage);
    warp.load_words(next);
    warp.multiply(decoder, slot);
  }
  warp.finish();
}

}  // namespace bcq::cuda
