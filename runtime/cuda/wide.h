// SPDX-License-Identifier: Apache-2.0
// The kernel for many rows of A on compute capability 9.0: weights are decoded into registers as in tiles.h, and four
// warps multiply them with 128 tokens of a stage by instructions that run while the next weights are decoded.
//
// Not selected by itself: no device has run it (docs/decisions/0016-cuda.md).
#pragma once

#include "cuda/simt_wide.h"
#include "cuda/weights.h"

namespace bcq::cuda {

constexpr int kWideSlots = 3;  // stages of activations: one is written while instructions of two others may be running
constexpr int kWideGroupWarps = 4;
constexpr int kWideGroupRows = kWideGroupWarps * kBlockRows;
constexpr int kWideHalfBytes = kWideTokens * kWideRowBytes;  // 64 inputs of all tokens
constexpr int kWideSlotBytes = 2 * kWideHalfBytes;
constexpr int kWideSetTokens = 8;  // whose chunks a warp brings at once: lane 4 g + t has chunk t of token g
constexpr int kWidePieces = 4;     // of a chunk, eight inputs each: the order of the weights does not mix them
constexpr uint32_t kWideAlignment = 1024;

// Where word `word` of a chunk in the order of the weights (ordered_word) lies, from word 0 on. Words 2 u and 2 u + 1
// belong to instruction u, inputs 2 t, 2 t + 1 and 2 t + 8, 2 t + 9 of its 16.
BCQ_HD uint32_t wide_word(uint32_t first, int word) {
  const int u = word / 2;
  return swizzled(first, 2 * (u % 4) + word % 2) + uint32_t(u / 4 * kWideHalfBytes);
}
// The second operand of instruction u, from the beginning of a slot.
BCQ_HD int wide_operand(int u) { return u / 4 * kWideHalfBytes + 32 * (u % 4); }

// Shared memory of a block; the first bytes are lost where it does not begin at a multiple of 1024.
template <int planes>
BCQ_HD int wide_bytes(int warps) {
  return int(kWideAlignment) + kWideSlots * kWideSlotBytes + 4 * warps * Table<planes>::kWarpWords;
}

// groups: of four warps in a block, each with 128 rows of its own.
template <bool brain, int planes, int groups>
struct WideWarp {
  using Rows = WeightRows<brain, planes>;
  static constexpr int kWarps = groups * kWideGroupWarps;
  // Pieces that a lane brings for each stage.
  static constexpr int kPieces = kWideTokens / kWideSetTokens / kWarps * kWidePieces;

  const MatMul& p;
  const bool aligned;
  const int warp, lane;
  unsigned char* const slots;
  Rows weights;
  Words4 pieces[2];  // on their way from memory
  float sums[2][kWideSums];

  BCQ_DEVICE static unsigned char* first_slot() {
    unsigned char* const memory = simt::shared();
    return memory + (kWideAlignment - simt::shared_address(memory) % kWideAlignment) % kWideAlignment;
  }

  BCQ_DEVICE WideWarp(const MatMul& problem, bool vectors)
      : p(problem),
        aligned(vectors),
        warp(simt::thread() / kWarp),
        lane(simt::thread() % kWarp),
        slots(first_slot()),
        weights{p, lane, simt::block_x() * kWarps + warp,
                reinterpret_cast<uint32_t*>(slots + kWideSlots * kWideSlotBytes) + warp * Table<planes>::kWarpWords, {}, {}} {}

  BCQ_DEVICE int token(int i) const { return (i / kWidePieces * kWarps + warp) * kWideSetTokens + (lane >> 2); }

  BCQ_DEVICE void load_piece(int stage, int i) {
    const int m = simt::block_y() * kWideTokens + token(i);  // at most kMostRows and a block
    const int k = (stage * kStageChunks + (lane & 3)) * kWordBits + i % kWidePieces * 8;
    const int left = m < int(p.given.M) ? p.layout.K - k : 0;
    pieces[i % 2] = load_eight(static_cast<const uint16_t*>(p.given.a) + m * p.given.a_stride + k, aligned, left);
  }

  BCQ_DEVICE void store_piece(int slot, int i) {
    const uint32_t to = simt::shared_address(slots) + uint32_t(slot * kWideSlotBytes + 4 * (lane & 3)) + first_unit(token(i));
    BCQ_UNROLL
    for (int s = 0; s < 4; ++s) {
      const int first = s / 2;  // word of inputs s and the next or the one before; the one of input s + 4 is 2 further
      const uint32_t word = simt::permute(pieces[i % 2].at[first], pieces[i % 2].at[first + 2], s % 2 == 0 ? 0x5410 : 0x7632);
      simt::store_operand(wide_word(to, ordered_position(i % kWidePieces, s)), word);
    }
  }

  // Stores piece i - 2 of a stage and fetches piece i, where they exist.
  BCQ_DEVICE void bring(int i, int stage, int slot) {
    if (i >= 2) store_piece(slot, i - 2);
    if (i < kPieces) load_piece(stage, i);
  }

  // Starts instruction u of a stage for both row fragments.
  BCQ_DEVICE void multiply(const typename Rows::Decoder& d, int u, int slot, bool adds, uint32_t (&a)[2][4]) {
    weights.fragments(d, u / 2, u % 2, a);
    const uint64_t operand = operand_at(simt::shared_address(slots + slot * kWideSlotBytes + wide_operand(u)));
    simt::wide_begin();
    BCQ_UNROLL
    for (int f = 0; f < 2; ++f) simt::wide_multiply<brain>(sums[f], a[f], operand, adds);
    simt::wide_commit();
  }

  // A lane has four neighbouring rows of 32 tokens.
  BCQ_DEVICE void finish() {
    const int64_t n = int64_t(weights.row_block) * kBlockRows + lane_first_row(lane);
    const bool vectors = reinterpret_cast<uintptr_t>(p.given.y) % 8 == 0 && p.given.y_stride % 4 == 0 && n + 4 <= p.layout.N;
    BCQ_UNROLL
    for (int i = 0; i < kWideSums / 2; ++i) {
      const int at = 4 * (i / 2) + i % 2;
      const int64_t m = int64_t(simt::block_y()) * kWideTokens + 8 * (i / 2) + 2 * (lane & 3) + i % 2;
      if (m >= p.given.M) continue;
      const float y[4] = {sums[0][at], sums[0][at + 2], sums[1][at], sums[1][at + 2]};
      const size_t to = size_t(m * p.given.y_stride + n);
      if (vectors) {
        const Words2 words = {{brain ? simt::brain_pair(y[0], y[1]) : simt::half_pair(y[0], y[1]),
                               brain ? simt::brain_pair(y[2], y[3]) : simt::half_pair(y[2], y[3])}};
        simt::store_global2(static_cast<uint16_t*>(p.given.y) + to, words);
        continue;
      }
      BCQ_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (n + j < p.layout.N) store_value(p.given.y, to + size_t(j), p.given.type, y[j]);
      }
    }
  }
};

template <bool brain, int planes, int groups>
BCQ_KERNEL(groups * kWideGroupWarps * kWarp, 3 - groups) wide_kernel(MatMul p, bool aligned) {
  WideWarp<brain, planes, groups> warp(p, aligned);
  const int stages = (p.layout.chunks + kStageChunks - 1) / kStageChunks;
  warp.weights.load_words(0);
  warp.weights.load_factors(0);
  BCQ_UNROLL
  for (int i = 0; i < warp.kPieces + 2; ++i) warp.bring(i, 0, 0);
  uint32_t a[2][2][4];  // one is read by running instructions while the other is decoded
  for (int stage = 0, slot = 0; stage < stages; ++stage) {
    // Behind the last stage nothing more is brought, but weights are: reading them twice costs less than asking.
    const int next_slot = slot + 1 < kWideSlots ? slot + 1 : 0;
    const bool more = stage + 1 < stages;
    warp.weights.store_tables(stage);
    simt::show_operands();
    simt::sync();  // all warps have waited for the instructions that read the slot that is written now
    const auto decoder = warp.weights.decoder(stage);
    BCQ_UNROLL
    for (int u = 0; u < 8; ++u) {
      warp.multiply(decoder, u, slot, stage > 0 || u > 0, a[u % 2]);
      if (u == 4) {  // half of the selectors are not needed any more, which makes room
        warp.weights.load_words(stage + 1);
        warp.weights.load_factors(group_of(p.layout, (stage + 1) * kStageChunks));
      }
      BCQ_UNROLL
      for (int i = u * warp.kPieces / 8; more && i < (u + 1) * warp.kPieces / 8; ++i) warp.bring(i, stage + 1, next_slot);
      simt::wide_wait<1>();
    }
    BCQ_UNROLL
    for (int i = warp.kPieces; more && i < warp.kPieces + 2; ++i) warp.bring(i, stage + 1, next_slot);
    slot = next_slot;
  }
  simt::wide_wait<0>();
  simt::wide_finish(warp.sums[0]);
  simt::wide_finish(warp.sums[1]);
  warp.finish();
}

}  // namespace bcq::cuda
