// SPDX-License-Identifier: Apache-2.0
// The float path of the T16 kernels, for rows of A that tables cannot hold: NaN, infinities, extreme magnitudes.
// Plain loops over the sixteen rows of a tile, which compilers vectorize for the ISA of the including file.
#pragma once

#include "core/half.h"
#include "kernels/bcq_matmul/lookup_plan.h"

namespace bcq {
namespace {

inline float activation(const MatMulProblem& p, int64_t m, int64_t k) {
  const int64_t at = m * p.a_stride + k;
  return p.a_is_half ? half_to_float(static_cast<const uint16_t*>(p.a)[at]) : static_cast<const float*>(p.a)[at];
}

// The factors of one group as floats: planes 1 .. q, then the offset.
struct ExactFactors {
  float values[9][kTileRows];
};

inline void load_factors(const MatMulProblem& p, int64_t cell, ExactFactors& f) {
  for (int64_t plane = 0; plane < p.bits; ++plane) {
    for (int64_t r = 0; r < kTileRows; ++r) f.values[plane][r] = half_to_float(plane_alpha(p, cell, plane)[r]);
  }
  for (int64_t r = 0; r < kTileRows; ++r) {
    f.values[p.bits][r] = p.offset ? half_to_float(p.offset[cell * kTileRows + r]) : 0.0f;
  }
}

// weight[r] = offset + sum_i alpha_i B_i for input j of a chunk.
inline void decode_input(const MatMulProblem& p, const uint32_t* words, const ExactFactors& f, uint32_t j,
                         float* weight) {
  for (int64_t r = 0; r < kTileRows; ++r) weight[r] = f.values[p.bits][r];
  for (int64_t plane = 0; plane < p.bits; ++plane, words += kTileRows) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      const uint32_t minus = (~(words[r] >> j) & 1u) << 31;
      weight[r] += bits_to_float(float_to_bits(f.values[plane][r]) ^ minus);
    }
  }
}

// Writes the sixteen words of a line of resident codes as they are on disk; nullptr: codes are in the order of the disk.
using RestoreLine = void (*)(const uint32_t* line, uint32_t* words);

// The words of all planes of a chunk, from `room` where they have to be restored.
inline const uint32_t* chunk_words(const MatMulProblem& p, int64_t chunk, RestoreLine restore, uint32_t* room) {
  const uint32_t* words = p.codes + chunk * p.bits * kTileRows;
  if (restore == nullptr) return words;
  for (int64_t at = 0; at < p.bits * kTileRows; at += kTileRows) restore(words + at, room + at);
  return room;
}

// y[r] = sum_k a[k] * weight[r, k] in double, so that no partial sum overflows before the result does.
inline void exact_tile(const MatMulProblem& p, const LookupPlan& plan, int64_t m, int64_t tile, RestoreLine restore,
                       float* y) {
  double total[kTileRows] = {};
  ExactFactors factors;
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    if (chunk % plan.group_chunks == 0) load_factors(p, tile * plan.groups + chunk / plan.group_chunks, factors);
    uint32_t room[8 * kTileRows];
    const uint32_t* words = chunk_words(p, tile * plan.chunks + chunk, restore, room);
    const int64_t left = p.K - chunk * kWordBits;
    for (int64_t j = 0; j < (left < kWordBits ? left : kWordBits); ++j) {
      float weight[kTileRows];
      decode_input(p, words, factors, uint32_t(j), weight);
      const double a = double(activation(p, m, chunk * kWordBits + j));
      for (int64_t r = 0; r < kTileRows; ++r) total[r] += a * double(weight[r]);
    }
  }
  for (int64_t r = 0; r < kTileRows; ++r) y[r] = float(total[r]);
}

}  // namespace
}  // namespace bcq
