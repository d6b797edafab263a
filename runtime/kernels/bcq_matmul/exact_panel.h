// SPDX-License-Identifier: Apache-2.0
// The float32 kernels of all ISAs: a tile's codes become float32 weights in a small buffer, and rows of A meet them by
// FMA. The ISA file gives a vector type V: 8 or 16 lanes, one lane per row of the tile.
//
// Arithmetic, the same for every lane, ISA and number of rows of A:
//   w = offset; w = w +- alpha_i for i = 1 .. q                     (offset +- alpha_1 is one sum, made once a group)
//   s = 0; s = fma(a[k], w[k], s) for the 32 inputs of a chunk, the last one first
//   y = 0; y = y + s for the chunks in order
// The last input comes first because doubling a word of codes brings its bits to the sign in that order, and the sign
// is what selects between -alpha and +alpha.
#pragma once

#include "kernels/bcq_matmul/exact_rows.h"

namespace bcq {
namespace {

constexpr int64_t kPanelChunks = 4;  // 16 rows x 128 inputs are 8 KB: a quarter of the L1 cache
constexpr int64_t kMostRows = 64;    // rows of A that meet one decoded panel
constexpr int kMaxPlanes = 8;
constexpr int kPassPlanes = 4;  // planes whose words and factors fit into registers
constexpr int64_t kChunkFloats = kWordBits * kTileRows;
constexpr int kExactPrefetch = 4096;

// What a bit of each plane adds to a weight, for the sixteen rows of a tile; plane 0 with the offset in it.
struct alignas(64) PlaneFactors {
  float minus[kMaxPlanes][kTileRows];
  float plus[kMaxPlanes][kTileRows];
};

template <typename V>
inline void load_factors(const MatMulProblem& p, int64_t cell, PlaneFactors& f) {
  for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
    const auto base = p.offset ? V::halves(p.offset + cell * kTileRows + lane) : V::zero();
    for (int64_t i = 0; i < p.bits; ++i) {
      const uint16_t* alpha = i == 0 ? p.alpha_1 + cell * kTileRows
                                     : p.alpha_rest + (cell * (p.bits - 1) + i - 1) * kTileRows;
      const auto value = V::halves(alpha + lane);
      V::store(f.minus[i] + lane, i == 0 ? V::sub(base, value) : V::sub(V::zero(), value));
      V::store(f.plus[i] + lane, i == 0 ? V::add(base, value) : value);
    }
  }
}

// One chunk of one tile: to[32 j + r] gets planes first .. first + planes - 1 of input j and row r.
template <typename V, int planes>
inline void decode_pass(const uint32_t* words, const PlaneFactors& f, int first, float* to) {
  for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
    typename V::Words word[planes];
    typename V::Floats minus[planes], plus[planes];
    for (int i = 0; i < planes; ++i) {
      word[i] = V::words(words + i * kTileRows + lane);
      minus[i] = V::load(f.minus[first + i] + lane);
      plus[i] = V::load(f.plus[first + i] + lane);
    }
#pragma GCC unroll 4
    for (int64_t j = kWordBits - 1; j >= 0; --j) {
      float* at = to + j * kTileRows + lane;
      auto weight = V::select(word[0], minus[0], plus[0]);
      if (first > 0) weight = V::add(V::load(at), weight);
      for (int i = 1; i < planes; ++i) weight = V::add(weight, V::select(word[i], minus[i], plus[i]));
      V::store(at, weight);
      for (int i = 0; i < planes; ++i) word[i] = V::twice(word[i]);
    }
  }
}

template <typename V>
inline void decode_chunk(const uint32_t* words, int bits, const PlaneFactors& f, float* to) {
  for (int first = 0; first < bits; first += kPassPlanes, words += kPassPlanes * kTileRows) {
    switch (bits - first) {
      case 1: decode_pass<V, 1>(words, f, first, to); break;
      case 2: decode_pass<V, 2>(words, f, first, to); break;
      case 3: decode_pass<V, 3>(words, f, first, to); break;
      default: decode_pass<V, 4>(words, f, first, to);
    }
  }
}

// `rows` rows of A and `chains` chunks, each chunk with sums of its own: enough chains to hide the latency of FMA.
template <typename V, int rows, int chains>
inline void add_chunks(const float* a, int64_t stride, const float* weights, float* y) {
  constexpr int kParts = int(kTileRows) / V::kLanes;
  typename V::Floats sum[chains][rows][kParts];
  for (auto& chain : sum) {
    for (auto& row : chain) {
      for (auto& part : row) part = V::zero();
    }
  }
#pragma GCC unroll 2
  for (int64_t j = kWordBits - 1; j >= 0; --j) {
    for (int c = 0; c < chains; ++c) {
      typename V::Floats weight[kParts];
      for (int h = 0; h < kParts; ++h) weight[h] = V::load(weights + c * kChunkFloats + j * kTileRows + h * V::kLanes);
      for (int i = 0; i < rows; ++i) {
        const auto x = V::all(a + i * stride + c * kWordBits + j);
        for (int h = 0; h < kParts; ++h) sum[c][i][h] = V::fma(x, weight[h], sum[c][i][h]);
      }
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int h = 0; h < kParts; ++h) {
      float* at = y + i * kTileRows + h * V::kLanes;
      auto total = V::load(at);
      for (int c = 0; c < chains; ++c) total = V::add(total, sum[c][i][h]);
      V::store(at, total);
    }
  }
}

template <typename V, int rows, int chains>
inline void add_panel(const float* a, int64_t stride, const float* weights, int64_t chunks, float* y) {
  int64_t c = 0;
  for (; c + chains <= chunks; c += chains) {
    add_chunks<V, rows, chains>(a + c * kWordBits, stride, weights + c * kChunkFloats, y);
  }
  for (; c < chunks; ++c) add_chunks<V, rows, 1>(a + c * kWordBits, stride, weights + c * kChunkFloats, y);
}

// Sums that hide the latency of FMA and fit into registers: V::kSums vectors, of one, two or four chunks at a time.
template <typename V, int rows>
inline void add_rows(const float* a, int64_t stride, const float* weights, int64_t chunks, float* y) {
  constexpr int room = V::kSums * V::kLanes / (rows * int(kTileRows));
  add_panel<V, rows, (room >= 4 ? 4 : room >= 2 ? 2 : 1)>(a, stride, weights, chunks, y);
}

// y[i] += rows of A times a decoded panel, `count` rows from `a` on.
template <typename V>
inline void multiply_panel(const float* a, int64_t stride, int64_t count, const float* weights, int64_t chunks, float* y) {
  for (; count >= 6; count -= 6, a += 6 * stride, y += 6 * kTileRows) add_rows<V, 6>(a, stride, weights, chunks, y);
  switch (count) {
    case 1: return add_rows<V, 1>(a, stride, weights, chunks, y);
    case 2: return add_rows<V, 2>(a, stride, weights, chunks, y);
    case 3: return add_rows<V, 3>(a, stride, weights, chunks, y);
    case 4: return add_rows<V, 4>(a, stride, weights, chunks, y);
    case 5: return add_rows<V, 5>(a, stride, weights, chunks, y);
    default: return;
  }
}

// One tile for rows [m, m + count) of A.
template <typename V>
void exact_tile(const MatMulProblem& p, const ExactRows& rows, int64_t m, int64_t count, int64_t tile) {
  alignas(64) float weights[kPanelChunks * kChunkFloats];
  alignas(64) float y[kMostRows * kTileRows];
  for (int64_t i = 0; i < count * kTileRows; ++i) y[i] = 0.0f;
  const int64_t chunks = exact_chunks(p);
  const int64_t groups = (p.K - 1) / p.group_size + 1;
  const uint32_t* words = p.codes + tile * chunks * p.bits * kTileRows;
  PlaneFactors factors;
  int64_t group = -1;
  for (int64_t first = 0; first < chunks; first += kPanelChunks) {
    const int64_t panel = chunks - first < kPanelChunks ? chunks - first : kPanelChunks;
    for (int64_t c = 0; c < panel; ++c, words += p.bits * kTileRows) {
      const int64_t own = (first + c) * kWordBits / p.group_size;
      if (own != group) load_factors<V>(p, tile * groups + own, factors);
      group = own;
      decode_chunk<V>(words, p.bits, factors, weights + c * kChunkFloats);
    }
    multiply_panel<V>(rows.values(m) + first * kWordBits, rows.stride, count, weights, panel, y);
  }
  for (int64_t i = 0; i < count; ++i) store_exact(p, m + i, tile, y + i * kTileRows, rows.out(m + i));
}

template <typename V>
void run_exact(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  const ExactRows rows = exact_rows(p, scratch);
  for (int64_t m = 0; m < p.M; m += kMostRows) {
    const int64_t count = p.M - m < kMostRows ? p.M - m : kMostRows;
    for (int64_t tile = begin_tile; tile < end_tile; ++tile) exact_tile<V>(p, rows, m, count, tile);
  }
}

}  // namespace
}  // namespace bcq
