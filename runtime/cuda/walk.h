// SPDX-License-Identifier: Apache-2.0
// Where everything lies: tensors in memory, rows and inputs in the lanes of a warp, bits in the fragments of a matrix
// instruction. Pure arithmetic, on the device and on the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/simt.h"

namespace bcq::cuda {

constexpr int kTileRows = 16;
constexpr int kWordBits = 32;
constexpr int kWarp = 32;
constexpr int kBlockRows = 32;  // rows of W that a warp computes at once: two tiles

// The tensors of one weight, ops/README.md.
struct Layout {
  int K;
  int N;
  int chunks;        // C
  int groups;        // G
  int group_chunks;  // chunks of a group; all of them where there is one group
  int bits;          // planes that are stored
};

BCQ_HD Layout layout_of(int64_t K, int64_t N, int64_t group_size, int bits) {
  const int chunks = int((K + kWordBits - 1) / kWordBits);
  const bool one = group_size >= K;
  return {int(K), int(N), chunks, one ? 1 : int((K - 1) / group_size + 1), one ? chunks : int(group_size / kWordBits), bits};
}

BCQ_HD int tiles(const Layout& l) { return (l.N + kTileRows - 1) / kTileRows; }
BCQ_HD int row_blocks(const Layout& l) { return (l.N + kBlockRows - 1) / kBlockRows; }

BCQ_HD size_t word_at(const Layout& l, int tile, int chunk, int plane, int row) {
  return ((size_t(tile) * l.chunks + chunk) * l.bits + plane) * kTileRows + row;
}
// alpha_1 and offset.
BCQ_HD size_t factor_at(const Layout& l, int tile, int group, int row) {
  return (size_t(tile) * l.groups + group) * kTileRows + row;
}
// alpha_rest, plane 1 and above.
BCQ_HD size_t rest_at(const Layout& l, int tile, int group, int plane, int row) {
  return ((size_t(tile) * l.groups + group) * (l.bits - 1) + plane - 1) * kTileRows + row;
}

// A lane of a warp holds four rows that stand side by side, so that 16 bytes bring them: lanes with one g share them,
// and the four lanes t of a g hold different inputs. In the two row fragments of 16 rows each, fragment f has the rows
// 2 f (its row g) and 2 f + 1 (its row g + 8) of every lane.
struct LaneRows {
  int tile;  // 0 or 1, of the row block
  int row;   // the first of four, inside the tile
};
BCQ_HD LaneRows lane_rows(int lane) { return {lane >> 4, (lane >> 2 & 3) * 4}; }
BCQ_HD int lane_first_row(int lane) { return lane_rows(lane).tile * kTileRows + lane_rows(lane).row; }

// How many chunks the lanes of one matrix instruction cover without leaving a group: lane t takes a quarter of them.
BCQ_HD int span_of(const Layout& l) {
  if (l.groups == 1 || l.group_chunks % 4 == 0) return 4;
  return l.group_chunks % 2 == 0 ? 2 : 1;
}

// Steps of `span` chunks along K.
template <int span>
struct Steps {
  static constexpr int kInputs = span * kWordBits;
  static constexpr int kRegisters = 2 * span;  // masked words of a lane, a row and a plane: `span` instructions

  BCQ_HD static int count(const Layout& l) { return (l.chunks + span - 1) / span; }
  BCQ_HD static int group(const Layout& l, int step) {
    const int each = (l.group_chunks + span - 1) / span;
    return each == 1 ? step : step / each;
  }
  // Lane t reads this chunk of the step, moves its words down by `shift`, and masks bit r of each byte: 4 inputs.
  BCQ_HD static int lane_chunk(int t) { return t % span; }
  BCQ_HD static int shift(int t) { return kRegisters * (t / span); }
  BCQ_HD static int input(int t, int r, int byte) { return lane_chunk(t) * kWordBits + shift(t) + r + 8 * byte; }

  // The other way: inputs chunk * 32 + position + 8 i, i = 0..3, are the bytes of one register of lane t.
  BCQ_HD static int quad_lane(int chunk, int position) { return chunk + span * (position / kRegisters); }
  BCQ_HD static int quad_register(int position) { return position % kRegisters; }

  // Word of register r of a lane in the fragments of the activations; `lanes` of the warp have any. Lanes stand side by
  // side in units of up to four registers, so that a warp reads without bank conflicts.
  BCQ_HD static int fragment_words(int lanes) { return lanes * kRegisters; }
  BCQ_HD static int fragment_at(int lanes, int step, int lane, int r) {
    constexpr int unit = kRegisters < 4 ? kRegisters : 4;
    return step * fragment_words(lanes) + r / unit * lanes * unit + lane * unit + r % unit;
  }
};

// One bit of each byte of a word: 0 or 2^r.
BCQ_HD uint32_t masked(uint32_t word, int r) { return word & 0x01010101u << r; }

}  // namespace bcq::cuda
