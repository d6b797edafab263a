// SPDX-License-Identifier: Apache-2.0
// BcqGather for AVX2: eight inputs of a row at a time, to the bit what scalar.cc computes.
#include <immintrin.h>

#include <cstring>

#include "core/half.h"
#include "kernels/bcq_gather/rows.h"

namespace bcq {
namespace {

constexpr int kLanes = 8;
constexpr int kVectors = int(kWordBits) / kLanes;
constexpr int kMaxPlanes = 8;

// What a bit of each plane adds, in all lanes; plane 0 with the zero that the specification starts from, which turns
// -0 into +0.
struct Factors {
  __m256 minus[kMaxPlanes];
  __m256 plus[kMaxPlanes];
  __m256 offset;
  bool finite;  // all of them; a sum of finite ones cannot overflow
};

inline bool is_finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

inline Factors load_factors(const Row& row, int64_t group, int bits) {
  Factors f;
  f.finite = true;
  const __m256 zero = _mm256_setzero_ps();
  for (int i = 0; i < bits; ++i) {
    const uint16_t half = plane_alpha(row, group, i, bits);
    f.finite &= is_finite(half);
    const __m256 alpha = _mm256_set1_ps(half_to_float(half));
    const __m256 negated = _mm256_xor_ps(alpha, _mm256_set1_ps(-0.0f));
    f.plus[i] = i == 0 ? _mm256_add_ps(zero, alpha) : alpha;
    f.minus[i] = i == 0 ? _mm256_add_ps(zero, negated) : negated;
  }
  const uint16_t offset = row.offset ? row.offset[group * kTileRows] : uint16_t(0);
  f.finite &= is_finite(offset);
  f.offset = _mm256_set1_ps(half_to_float(offset));
  return f;
}

// Inputs 8 v .. 8 v + 7 of a chunk: their bits go to the sign of each lane, which selects minus or plus.
inline __m256 eight_weights(const uint32_t* words, int bits, const Factors& f, bool has_offset, __m256i shift) {
  __m256 sum = _mm256_setzero_ps();
  for (int i = 0; i < bits; ++i) {
    const __m256i word = _mm256_sllv_epi32(_mm256_set1_epi32(int(words[i * kTileRows])), shift);
    const __m256 term = _mm256_blendv_ps(f.minus[i], f.plus[i], _mm256_castsi256_ps(word));
    sum = i == 0 ? term : _mm256_add_ps(sum, term);
  }
  return has_offset ? _mm256_add_ps(sum, f.offset) : sum;
}

template <int bits>
inline void decode_chunk(const uint32_t* words, const Factors& f, bool has_offset, float* to) {
  const __m256i eight = _mm256_set1_epi32(kLanes);
  __m256i shift = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  for (int v = 0; v < kVectors; ++v, shift = _mm256_sub_epi32(shift, eight)) {
    _mm256_storeu_ps(to + v * kLanes, eight_weights(words, bits, f, has_offset, shift));
  }
}

// A pass of its own over a group that has factors which are not finite, so that no other pays for it.
__attribute__((noinline)) void make_canonical(float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = canonical(y[i]);
}

template <int bits>
void decode_row(const GatherProblem& p, const Row& row, float* y) {
  const uint32_t* words = row.words;
  const int64_t step = p.planes * kTileRows;
  for (int64_t group = 0; group * p.group_size < p.K; ++group) {
    const Factors factors = load_factors(row, group, bits);
    const int64_t left = p.K - group * p.group_size;
    const int64_t count = left < p.group_size ? left : p.group_size;
    float* to = y + group * p.group_size;
    int64_t rest = count;
    for (; rest >= kWordBits; rest -= kWordBits, to += kWordBits, words += step) {
      decode_chunk<bits>(words, factors, row.offset != nullptr, to);
    }
    if (rest != 0) {
      alignas(32) float last[kWordBits];  // only the last group ends inside a chunk
      decode_chunk<bits>(words, factors, row.offset != nullptr, last);
      std::memcpy(to, last, size_t(rest) * sizeof(float));
    }
    if (!factors.finite) make_canonical(y + group * p.group_size, count);
  }
}

void decode(const GatherProblem& p, const Row& row, float* y) {
  switch (p.bits) {
    case 1: return decode_row<1>(p, row, y);
    case 2: return decode_row<2>(p, row, y);
    case 3: return decode_row<3>(p, row, y);
    case 4: return decode_row<4>(p, row, y);
    case 5: return decode_row<5>(p, row, y);
    case 6: return decode_row<6>(p, row, y);
    case 7: return decode_row<7>(p, row, y);
    default: return decode_row<8>(p, row, y);
  }
}

void run(const GatherProblem& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) decode(p, row_at(p, row_number(p, i)), p.y + i * p.K);
}

}  // namespace

extern const GatherKernel kGather_avx2 = {"avx2", "avx2", BCQ_CPU_AVX2, run};

}  // namespace bcq
