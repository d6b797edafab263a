// SPDX-License-Identifier: Apache-2.0
// Weights as 16-bit floats in registers, as first operand of the tensor cores: no dequantized copy exists anywhere.
//
// A group of a row has 2^q different weights, sums of +-alphas and the offset, each rounded once. They lie in shared
// memory as bytes, low and high ones apart, so that one byte permutation looks up four weights: its selector is four
// nibbles, each the bits of one input in all planes. Nibbles collect inputs s, s + 4, s + 8 ..., and the activations are
// stored in the order in which that makes the weights.
#pragma once

#include "cuda/problem.h"

namespace bcq::cuda {

constexpr int kStageChunks = 4;  // lane t takes chunk t of a stage

template <int planes>
struct Table {
  static constexpr int kEntries = 1 << planes;
  static constexpr int kWords = planes > 3 ? 8 : 4;  // of one row: low bytes, then high bytes
  static constexpr int kHigh = kWords / 2;           // where the high bytes begin
  static constexpr int kGroupWords = kBlockRows * kWords + 4;  // the last 4 keep the groups of a stage in other banks
  static constexpr int kWarpWords = kStageChunks * kGroupWords;
};

// Word 2 u + i of a chunk of activations in the order of the weights, from words of inputs (2 w, 2 w + 1): matrix
// instruction u = 2 s + h takes inputs s + 16 h and s + 4 + 16 h, then s + 8 + 16 h and s + 12 + 16 h.
BCQ_HD int ordered_input(int word) { return word / 4 + 16 * (word / 2 % 2) + 8 * (word % 2); }
// The other way: inputs 8 b + s and 8 b + s + 4.
BCQ_HD int ordered_position(int b, int s) { return 4 * s + b; }

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

// Eight activations from `from` on, zeros behind the first `left`.
BCQ_DEVICE Words4 load_eight(const uint16_t* from, bool aligned, int left) {
  if (aligned && left >= 8) return simt::load4(from);
  Words4 words;
  BCQ_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = 2 * i < left ? simt::load(from + 2 * i) : 0u;
    const uint32_t high = 2 * i + 1 < left ? simt::load(from + 2 * i + 1) : 0u;
    words.at[i] = low | high << 16;
  }
  return words;
}

// The weights of one warp: 32 rows of W, one stage of K after the other.
template <bool brain, int planes>
struct WeightRows {
  using Weights = Table<planes>;

  const MatMul& p;
  const int lane, row_block;
  uint32_t* const tables;  // this warp's, Weights::kWarpWords

  Words4 words[planes];
  Factors<planes> factors;

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

  // The operands of matrix instructions u = 2 s + h, of both row fragments.
  BCQ_DEVICE void fragments(const Decoder& d, int s, int h, uint32_t (&a)[2][4]) const {
    BCQ_UNROLL
    for (int j = 0; j < 4; ++j) {
      look_up<planes>(d.table[j], d.selectors[j][s] >> 16 * h, planes > 3 ? d.fourth[j] >> (s + 16 * h) : 0u,
                      a[j / 2][j % 2], a[j / 2][j % 2 + 2]);
    }
  }
};

}  // namespace bcq::cuda
