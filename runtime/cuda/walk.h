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
  int group_shift;   // its logarithm, -1 where it has none: shifts are cheaper than divisions
  int bits;          // planes that are read
  int planes;        // planes that codes hold
};

BCQ_HD Layout layout_of(int64_t K, int64_t N, int64_t group_size, int bits, int planes) {
  Layout l = {int(K), int(N), int((K + kWordBits - 1) / kWordBits), 1, 0, 31, bits, planes};
  l.group_chunks = l.chunks;
  if (group_size >= K) return l;
  l.groups = int((K - 1) / group_size + 1);
  l.group_chunks = int(group_size / kWordBits);
  l.group_shift = 0;
  while (1 << l.group_shift < l.group_chunks) ++l.group_shift;
  if (1 << l.group_shift != l.group_chunks) l.group_shift = -1;
  return l;
}

BCQ_HD int tiles(const Layout& l) { return (l.N + kTileRows - 1) / kTileRows; }
BCQ_HD int row_blocks(const Layout& l) { return (l.N + kBlockRows - 1) / kBlockRows; }

// The group of a chunk; chunks behind the last one count as the last one.
BCQ_HD int group_of(const Layout& l, int chunk) {
  const int inside = chunk < l.chunks ? chunk : l.chunks - 1;
  return l.group_shift >= 0 ? inside >> l.group_shift : inside / l.group_chunks;
}

BCQ_HD size_t word_at(const Layout& l, int tile, int chunk, int plane, int row) {
  return ((size_t(tile) * l.chunks + chunk) * l.planes + plane) * kTileRows + row;
}
// alpha_1 and offset.
BCQ_HD size_t factor_at(const Layout& l, int tile, int group, int row) {
  return (size_t(tile) * l.groups + group) * kTileRows + row;
}
// alpha_rest, plane 1 and above.
BCQ_HD size_t rest_at(const Layout& l, int tile, int group, int plane, int row) {
  return ((size_t(tile) * l.groups + group) * (l.bits - 1) + plane - 1) * kTileRows + row;
}

// The same positions in units of four rows, for lanes that hold four: 32 bits reach 2^34 words, see kMostUnits.
constexpr uint64_t kMostUnits = uint64_t(1) << 32;
constexpr uint32_t kTileUnits = kTileRows / 4;

BCQ_HD uint64_t all_units(const Layout& l, int64_t tile_count) {
  return uint64_t(tile_count) * uint64_t(l.chunks) * uint64_t(l.planes) * kTileUnits;
}
BCQ_HD uint32_t word_unit(const Layout& l, int tile, int chunk, int row) {
  return (uint32_t(tile) * uint32_t(l.chunks) + uint32_t(chunk)) * uint32_t(l.planes) * kTileUnits + uint32_t(row) / 4;
}
BCQ_HD uint32_t factor_unit(const Layout& l, int tile, int group, int row) {
  return (uint32_t(tile) * uint32_t(l.groups) + uint32_t(group)) * kTileUnits + uint32_t(row) / 4;
}
BCQ_HD uint32_t rest_unit(const Layout& l, int tile, int group, int row) {
  return (uint32_t(tile) * uint32_t(l.groups) + uint32_t(group)) * uint32_t(l.bits - 1) * kTileUnits + uint32_t(row) / 4;
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
