// SPDX-License-Identifier: Apache-2.0
// Rows of A and Y for the float32 kernels of x86: A as padded float32 rows in scratch, Y rounded to its type at the
// end. Needs AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/bcq_matmul/kernel.h"
#include "kernels/bcq_matmul/row_range.h"

namespace bcq {
namespace {

// Sixteen floats in front of each row: they hold its output factor, and they keep rows whose length is a power of two
// from sharing the same few sets of the cache.
constexpr int64_t kRowHeader = 16;

struct ExactRows {
  float* first;
  int64_t stride;
  float* values(int64_t m) const { return first + m * stride + kRowHeader; }
  float& out(int64_t m) const { return first[m * stride]; }
};

inline int64_t exact_chunks(const MatMulProblem& p) { return (p.K + kWordBits - 1) / kWordBits; }
inline int64_t exact_stride(const MatMulProblem& p) { return kRowHeader + exact_chunks(p) * kWordBits; }
inline size_t exact_scratch_bytes(const MatMulProblem& p) { return size_t(p.M * exact_stride(p)) * sizeof(float); }

inline ExactRows exact_rows(const MatMulProblem& p, const void* scratch) {
  return {static_cast<float*>(const_cast<void*>(scratch)), exact_stride(p)};
}

// accuracy_level 1 asks for float32; look-up tables serve all other levels.
inline bool exact_supports(const MatMulProblem& p) { return p.accuracy_level == 1; }

inline __m256 eight_inputs(const MatMulProblem& p, int64_t at) {
  if (!p.a_is_half) return _mm256_loadu_ps(static_cast<const float*>(p.a) + at);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p.a) + at)));
}

// Fewer than eight inputs, zeros behind them.
inline __m256 last_inputs(const MatMulProblem& p, int64_t at, size_t count) {
  alignas(32) float values[8] = {};
  if (!p.a_is_half) {
    std::memcpy(values, static_cast<const float*>(p.a) + at, count * sizeof(float));
    return _mm256_load_ps(values);
  }
  std::memcpy(values, static_cast<const uint16_t*>(p.a) + at, count * sizeof(uint16_t));
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(values)));
}

inline uint32_t largest_lane(__m256i v) {
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
  uint32_t largest = 0;
  for (uint32_t lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// Row m of A as float32 with zeros up to a whole chunk, brought into range.
inline void prepare_exact_row(const MatMulProblem& p, const ExactRows& rows, int64_t m) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const int64_t end = rows.stride - kRowHeader;
  float* to = rows.values(m);
  __m256i most = _mm256_setzero_si256();
  for (int64_t k = 0; k < end; k += 8) {
    const int64_t at = m * p.a_stride + k;
    const __m256 x = k + 8 <= p.K ? eight_inputs(p, at) : k < p.K ? last_inputs(p, at, size_t(p.K - k)) : __m256{};
    most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
    _mm256_storeu_ps(to + k, x);
  }
  const RowRange range = row_range(largest_lane(most));
  rows.out(m) = range.out;
  if (range.in == 1.0f) return;
  const __m256 in = _mm256_set1_ps(range.in);
  for (int64_t k = 0; k < end; k += 8) _mm256_storeu_ps(to + k, _mm256_mul_ps(_mm256_loadu_ps(to + k), in));
}

inline void prepare_exact(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const ExactRows rows = exact_rows(p, scratch);
  for (int64_t m = begin_row; m < end_row; ++m) prepare_exact_row(p, rows, m);
}

// Y[m, 16 tile ...] = y[0..15] * out, only the rows of W below N.
inline void store_exact(const MatMulProblem& p, int64_t m, int64_t tile, const float* y, float out) {
  const size_t count = size_t(p.N - tile * kTileRows < kTileRows ? p.N - tile * kTileRows : kTileRows);
  const int64_t at = m * p.y_stride + tile * kTileRows;
  const __m256 first = _mm256_mul_ps(_mm256_loadu_ps(y), _mm256_set1_ps(out));
  const __m256 second = _mm256_mul_ps(_mm256_loadu_ps(y + 8), _mm256_set1_ps(out));
  alignas(32) float values[kTileRows];
  if (!p.a_is_half) {
    _mm256_store_ps(values, first);
    _mm256_store_ps(values + 8, second);
    std::memcpy(static_cast<float*>(p.y) + at, values, count * sizeof(float));
    return;
  }
  __m128i* halves = reinterpret_cast<__m128i*>(values);
  _mm_store_si128(halves, _mm256_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT));
  _mm_store_si128(halves + 1, _mm256_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT));
  std::memcpy(static_cast<uint16_t*>(p.y) + at, values, count * sizeof(uint16_t));
}

}  // namespace
}  // namespace bcq
