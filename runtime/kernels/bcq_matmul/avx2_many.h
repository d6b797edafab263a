// SPDX-License-Identifier: Apache-2.0
// AVX2 look-ups for several rows of A, which share the indexes. Each row sees the same arithmetic as alone.
//
// One block of up to sixteen rows passes over some tiles before the next block comes: its tables (1 KB a row for T16)
// stay in the first-level cache meanwhile, while the outputs of these tiles wait in memory.
#pragma once

#include "kernels/bcq_matmul/avx2_one.h"

namespace bcq {
namespace {

constexpr int64_t kPanelTiles = 16;

inline LineNibbles nibbles_of(const Line& bytes) { return {split(bytes.x), split(bytes.y)}; }

// One block and plane of one tile for all rows of a set, whose look-ups are done.
struct RowBlock {
  const RowSet& set;
  int64_t number;
  int64_t chunks;
  const uint16_t* alpha;
};

struct ManyT16 {
  static constexpr Entries kEntries = kT16;

  template <int chunks>
  static void look_up(const LineNibbles* lines, const uint8_t* const* tables, int64_t count, Merged* merged) {
    for (int64_t i = 0; i < count; ++i) {
      merged[i] = look_up_block<chunks>(
          OneLineTwoTables<FromBuffer>{{lines}, tables[i], tables[i] + kVectorTables, kT16.table_bytes});
    }
  }

  __attribute__((noinline)) static void add(const RowBlock& b, const Merged* merged, float* y) {
    const Sixteen alpha = sixteen_halves(b.alpha);
    for (int64_t i = 0; i < b.set.count; ++i, y += kTileRows) {
      Sixteen outputs = load(y);
      add_scaled(outputs, alpha, b.set.rows[i].scale[b.number], sums_of_16_bits(merged[i], b.chunks));
      store(y, outputs);
    }
  }
};

// Two rows of A at once; an odd last one is looked up twice.
struct ManyT8 {
  static constexpr Entries kEntries = kT8;

  template <int chunks>
  static void look_up(const LineNibbles* lines, const uint8_t* const* tables, int64_t count, Merged* merged) {
    for (int64_t i = 0; i < count; i += 2) {
      const uint8_t* other = tables[i + 1 < count ? i + 1 : i];
      *merged++ = look_up_block<chunks>(OneLineTwoTables<FromBuffer>{{lines}, tables[i], other, kT8.table_bytes});
    }
  }

  __attribute__((noinline)) static void add(const RowBlock& b, const Merged* merged, float* y) {
    const Sixteen alpha = sixteen_halves(b.alpha);
    for (int64_t i = 0; i < b.set.count; i += 2) {
      const WordSums words = word_sums(*merged++);
      const WordSums sums = {without_bias(words.front, b.chunks), without_bias(words.back, b.chunks)};
      add_row(b, i, alpha, stream_a(sums), y);
      if (i + 1 < b.set.count) add_row(b, i + 1, alpha, stream_b(sums), y);
    }
  }

 private:
  static void add_row(const RowBlock& b, int64_t i, const Sixteen& alpha, __m256i words, float* y) {
    Sixteen outputs = load(y + i * kTileRows);
    add_scaled(outputs, alpha, b.set.rows[i].scale[b.number] * kOver65536, sums_of_8_bits(words));
    store(y + i * kTileRows, outputs);
  }
};

inline void add_offsets(const RowSet& set, int64_t number, const uint16_t* values, float* y) {
  const Sixteen offset = sixteen_halves(values);
  for (int64_t i = 0; i < set.count; ++i, y += kTileRows) {
    Sixteen outputs = load(y);
    add_offset(outputs, offset, set.rows[i].sum[number]);
    store(y, outputs);
  }
}

template <typename Method, typename Order, int chunks>
inline void add_tile(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, const LookupBlock& block,
                     int64_t tile, const uint8_t* const* tables, float* y) {
  const uint32_t* line = first_line(p, plan, block, tile);
  const int64_t cell = tile * plan.groups + block.group;
  for (int64_t plane = 0; plane < p.bits; ++plane, line += kTileRows) {
    LineNibbles lines[chunks];
    for (int c = 0; c < chunks; ++c) {
      const uint32_t* at = line + c * p.bits * kTileRows;
      _mm_prefetch(reinterpret_cast<const char*>(at + plan.chunks * p.bits * kTileRows), _MM_HINT_T0);  // next tile
      lines[c] = nibbles_of(Order::load(at));
    }
    Merged merged[kRowsAtOnce];
    Method::template look_up<chunks>(lines, tables, set.count, merged);
    Method::add({set, block.number, chunks, plane_alpha(p, cell, plane)}, merged, y);
  }
  if (p.offset) add_offsets(set, block.number, p.offset + cell * kTileRows, y);
}

template <typename Method, typename Order, int chunks>
void add_block(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, const LookupBlock& block,
               int64_t begin_tile, int64_t end_tile, float* y) {
  const uint8_t* tables[kRowsAtOnce];
  for (int64_t i = 0; i < set.count; ++i) tables[i] = first_table(plan, set.rows[i], block);
  for (int64_t tile = begin_tile; tile < end_tile; ++tile, y += kRowsAtOnce * kTileRows) {
    add_tile<Method, Order, chunks>(p, plan, set, block, tile, tables, y);
  }
}

template <typename Method, typename Order>
void panel_for_many(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t begin, int64_t end,
                    float* y) {
  for (int64_t i = 0; i < (end - begin) * kRowsAtOnce; ++i) store(y + i * kTileRows, Sixteen{});
  for_each_block(plan, [&](const LookupBlock& block) {
    switch (block.chunks) {
      case 4: return add_block<Method, Order, 4>(p, plan, set, block, begin, end, y);
      case 3: return add_block<Method, Order, 3>(p, plan, set, block, begin, end, y);
      case 2: return add_block<Method, Order, 2>(p, plan, set, block, begin, end, y);
      default: return add_block<Method, Order, 1>(p, plan, set, block, begin, end, y);
    }
  });
}

template <typename Method, typename Order>
void run_many(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t begin_tile, int64_t end_tile) {
  alignas(64) float y[kPanelTiles * kRowsAtOnce * kTileRows];
  for (int64_t begin = begin_tile; begin < end_tile; begin += kPanelTiles) {
    const int64_t end = end_tile - begin < kPanelTiles ? end_tile : begin + kPanelTiles;
    panel_for_many<Method, Order>(p, plan, set, begin, end, y);
    for (int64_t tile = begin; tile < end; ++tile) {
      const float* outputs = y + (tile - begin) * kRowsAtOnce * kTileRows;
      for (int64_t i = 0; i < set.count; ++i) {
        store_tile(p, set.numbers[i], tile, outputs + i * kTileRows, *set.rows[i].out);
      }
    }
  }
}

}  // namespace
}  // namespace bcq
