// SPDX-License-Identifier: Apache-2.0
// The float32 kernels of AVX2, AVX-512 and NEON: a tile's codes become float32 weights in a small buffer, and rows of A
// meet them by FMA. The ISA file gives a vector type V: 4, 8 or 16 lanes, one lane per row of the tile.
//
// Arithmetic, the same for every lane, instruction set and number of rows of A:
//   base = offset - alpha_1 - ... - alpha_q                       once a group
//   w = base; w = fma(b_i, 2 alpha_i, w) for i = 1 .. q            with bits b_i in {0, 1}
//   s = 0; s = fma(a[k], w[k], s) for the 32 inputs of a chunk, the last one first
//   y = 0; y = y + s for the chunks in order
//
// A bit becomes a float by one AND: alone in a word, bits 27 to 30 are the floats 2^-111, 2^-95, 2^-63 and 2, because
// they lie in the exponent. Products with alpha 2^112, alpha 2^96, alpha 2^64 and alpha are 2 alpha, without rounding;
// as alpha is below 2^16, all four fit float32. So a nibble is one shift, and a weight is an AND and an FMA per plane.
#pragma once

#include "kernels/bcq_matmul/exact_rows.h"

namespace bcq {
namespace {

constexpr int64_t kPanelChunks = 4;  // 16 rows x 128 inputs are 8 KB: a quarter of the L1 cache
constexpr int64_t kMostRows = 64;    // rows of A that meet one decoded panel
constexpr int kMaxPlanes = 8;
constexpr int kNibble = 4;
constexpr int64_t kChunkFloats = kWordBits * kTileRows;
constexpr int kExactPrefetch = 4096;

// The bits of a nibble at work, the last input's first, and 2 divided by the float that each bit alone is.
constexpr uint32_t kBits[kNibble] = {1u << 30, 1u << 29, 1u << 28, 1u << 27};
constexpr float kInverse[kNibble] = {1.0f, 0x1p64f, 0x1p96f, 0x1p112f};

// The factors of one group of a tile, sixteen rows side by side.
struct alignas(64) GroupFactors {
  float base[kTileRows];
  float scaled[kMaxPlanes][kNibble][kTileRows];  // alpha * kInverse
};

template <typename V>
inline void load_factors(const MatMulProblem& p, int64_t cell, GroupFactors& f) {
  for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
    auto base = p.offset ? V::halves(p.offset + cell * kTileRows + lane) : V::zero();
    for (int64_t i = 0; i < p.bits; ++i) {
      const uint16_t* alphas = i == 0 ? p.alpha_1 + cell * kTileRows
                                      : p.alpha_rest + (cell * (p.bits - 1) + i - 1) * kTileRows;
      const auto alpha = V::halves(alphas + lane);
      base = V::sub(base, alpha);
      for (int b = 0; b < kNibble; ++b) V::store(f.scaled[i][b] + lane, V::mul(alpha, V::all(&kInverse[b])));
    }
    V::store(f.base + lane, base);
  }
}

// The weights of four inputs, the last of them at to; their bits stand at kBits in the word of each plane.
template <typename V, int planes>
inline void decode_nibble(const typename V::Words* word, const GroupFactors& f, int lane, float* to) {
  for (int b = 0; b < kNibble; ++b) {
    auto weight = V::load(f.base + lane);
    for (int i = 0; i < planes; ++i) {
      weight = V::fma(V::keep(word[i], kBits[b]), V::load(f.scaled[i][b] + lane), weight);
    }
    V::store(to - b * kTileRows, weight);
  }
}

// One chunk of one tile: to[16 j + r] is the weight of input j and row r.
template <typename V, int planes>
inline void decode_planes(const uint32_t* words, const GroupFactors& f, float* to) {
  for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
    float* last = to + (kWordBits - 1) * kTileRows + lane;
    typename V::Words word[planes], first[planes];
    for (int i = 0; i < planes; ++i) {
      word[i] = V::words(words + i * kTileRows + lane);
      first[i] = V::template right<1>(word[i]);
      word[i] = V::template left<kNibble - 1>(word[i]);
    }
    decode_nibble<V, planes>(first, f, lane, last);
    for (int nibble = 1; nibble < kWordBits / kNibble; ++nibble) {
      decode_nibble<V, planes>(word, f, lane, last - nibble * kNibble * kTileRows);
      for (int i = 0; i < planes; ++i) word[i] = V::template left<kNibble>(word[i]);
    }
  }
}

inline void prefetch_codes(const uint32_t* words, int bits) {
  for (int i = 0; i < bits; ++i) {
    __builtin_prefetch(reinterpret_cast<const char*>(words + i * kTileRows) + kExactPrefetch);
  }
}

template <typename V>
inline void decode_chunk(const uint32_t* words, int bits, const GroupFactors& f, float* to) {
  switch (bits) {
    case 1: return decode_planes<V, 1>(words, f, to);
    case 2: return decode_planes<V, 2>(words, f, to);
    case 3: return decode_planes<V, 3>(words, f, to);
    case 4: return decode_planes<V, 4>(words, f, to);
    case 5: return decode_planes<V, 5>(words, f, to);
    case 6: return decode_planes<V, 6>(words, f, to);
    case 7: return decode_planes<V, 7>(words, f, to);
    default: return decode_planes<V, 8>(words, f, to);
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
#pragma GCC unroll 4
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
inline void multiply_panel(const float* a, int64_t stride, int64_t count, const float* weights, int64_t chunks,
                           float* y) {
  constexpr int most = V::kRows;
  for (; count >= most; count -= most, a += most * stride, y += most * kTileRows) {
    add_rows<V, most>(a, stride, weights, chunks, y);
  }
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
  const uint32_t* words = p.codes + tile * chunks * p.planes * kTileRows;
  int64_t cell = tile * ((p.K - 1) / p.group_size + 1);
  int64_t next_group = 0;  // the chunk where it begins
  GroupFactors factors;
  for (int64_t first = 0; first < chunks; first += kPanelChunks) {
    const int64_t end = chunks - first < kPanelChunks ? chunks : first + kPanelChunks;
    float* to = weights;
    for (int64_t c = first; c < end; ++c, words += p.planes * kTileRows, to += kChunkFloats) {
      if (c == next_group) {
        load_factors<V>(p, cell++, factors);
        next_group += (p.group_size + kWordBits - 1) / kWordBits;
      }
      prefetch_codes(words, p.bits);
      decode_chunk<V>(words, p.bits, factors, to);
    }
    multiply_panel<V>(rows.values(m) + first * kWordBits, rows.stride, count, weights, end - first, y);
  }
  for (int64_t i = 0; i < count; ++i) store_tile(p, m + i, tile, y + i * kTileRows, rows.out(m + i));
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
