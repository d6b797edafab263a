// SPDX-License-Identifier: Apache-2.0
// BcqMatMul for AVX-512 with VBMI and VNNI: T16 look-up tables read by vpermb, summed by vpdpbusd.
//
// A 64-byte line of codes is one vector: dword r holds 32 inputs of row r. vpermb reads a table of 64 bytes, so byte j
// of every dword looks up its own quad (index = nibble | 16 j), low nibbles the quads 0, 2, 4, 6 and high nibbles
// 1, 3, 5, 7, and vpdpbusd adds the four bytes of a dword to the 32-bit sum of its row.
// An entry v is stored as v = 255 hi + lo, found from v + 127 * 255 = 255 (hi + 127) + lo, with a signed byte hi and an
// unsigned byte lo: each is one operand of vpdpbusd, with 255 and 1 as the other, so that both go into the same sum and
// no correction is left.
#include <immintrin.h>

#include "kernels/bcq_matmul/lookup_plan.h"
#include "kernels/bcq_matmul/lookup_prepare.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int kPrefetchBytes = 6 * 1024;

// ---- tables: per chunk 64 bytes each of: hi of even quads, hi of odd quads, lo of even quads, lo of odd quads ----

constexpr int kLowBytes = 128;

void write_chunk(const float* scaled, uint8_t* table) {
  const __m256i bias = _mm256_set1_epi16(127 * 255);
  const __m256i byte = _mm256_set1_epi16(0x00ff);
  for (int quad = 0; quad < kQuadsPerChunk; ++quad) {
    const __m256i entries = _mm256_add_epi16(quad_entries(scaled + 4 * quad), bias);
    // floor(u / 255) = (u + 1 + (u >> 8)) >> 8 for 0 <= u < 65535, and u <= 64769 here.
    const __m256i carried = _mm256_add_epi16(_mm256_add_epi16(entries, _mm256_set1_epi16(1)), _mm256_srli_epi16(entries, 8));
    const __m256i quotient = _mm256_srli_epi16(carried, 8);
    const __m256i low = _mm256_sub_epi16(entries, _mm256_mullo_epi16(quotient, byte));
    const __m256i high = _mm256_and_si256(_mm256_sub_epi16(quotient, _mm256_set1_epi16(127)), byte);
    const __m256i split = _mm256_permute4x64_epi64(_mm256_packus_epi16(high, low), 0xd8);  // hi | lo
    uint8_t* to = table + 64 * (quad & 1) + 16 * (quad >> 1);
    _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(split));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + kLowBytes), _mm256_extracti128_si256(split, 1));
  }
}

void prepare(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const LookupPlan plan = lookup_plan(p, kT16);
  for (int64_t m = begin_row; m < end_row; ++m) prepare_row(p, plan, scratch, m, kT16.range, write_chunk);
}

// ---- look-ups ----

struct Indexes {
  __m512i even;
  __m512i odd;
};

// From one variable, GCC 12 would copy the line to the stack and read it twice from there.
inline __m512i load_again(const uint32_t* line) {
  asm("" : "+r"(line));
  return _mm512_loadu_si512(line);
}

inline Indexes indexes_of(const uint32_t* line) {
  _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes, _MM_HINT_T1);
  const __m512i words = _mm512_loadu_si512(line);
  const __m512i nibble = _mm512_set1_epi32(0x0f0f0f0f);
  const __m512i quads = _mm512_set1_epi32(0x30201000);
  // A product moves the high nibbles down on another port than a shift would.
  const __m512i moved = _mm512_mulhi_epu16(_mm512_set1_epi16(1 << 12), load_again(line));
  return {_mm512_ternarylogic_epi32(words, nibble, quads, 0xea), _mm512_ternarylogic_epi32(moved, nibble, quads, 0xea)};
}

// The sums of one row of A over some look-ups: two chains of vpdpbusd, added at the end.
struct Sums {
  __m512i high;
  __m512i low;
};

inline void look_up(const uint8_t* table, __m512i index, Sums& sums) {
  const __m512i high = _mm512_permutexvar_epi8(index, _mm512_loadu_si512(table));
  const __m512i low = _mm512_permutexvar_epi8(index, _mm512_loadu_si512(table + kLowBytes));
  sums.high = _mm512_dpbusd_epi32(sums.high, _mm512_set1_epi8(char(0xff)), high);
  sums.low = _mm512_dpbusd_epi32(sums.low, low, _mm512_set1_epi8(1));
}

inline __m512 sixteen_halves(const uint16_t* values) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

// y += alpha * (s * sum) for `count` rows of A over one block and plane.
template <int count>
inline void add_plane(const MatMulProblem& p, const LookupPlan& plan, const LookupRow* rows, const LookupBlock& block,
                      const uint32_t* line, const uint16_t* alpha, __m512* y) {
  Sums sums[count];
  for (int i = 0; i < count; ++i) sums[i] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t c = 0; c < block.chunks; ++c) {
    const Indexes index = indexes_of(line + c * p.bits * kTileRows);
    for (int i = 0; i < count; ++i) {
      const uint8_t* table = first_table(plan, rows[i], block) + size_t(c) * plan.table_bytes;
      look_up(table, index.even, sums[i]);
      look_up(table + 64, index.odd, sums[i]);
    }
  }
  const __m512 factors = sixteen_halves(alpha);
  for (int i = 0; i < count; ++i) {
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[i].high, sums[i].low));
    const __m512 scaled = _mm512_mul_ps(_mm512_set1_ps(rows[i].scale[block.number]), sum);
    y[i] = _mm512_fmadd_ps(factors, scaled, y[i]);
  }
}

// y += offset * (sum of the block's activations)
template <int count>
inline void add_offset(const LookupRow* rows, const LookupBlock& block, const uint16_t* offset, __m512* y) {
  const __m512 factors = sixteen_halves(offset);
  for (int i = 0; i < count; ++i) y[i] = _mm512_fmadd_ps(factors, _mm512_set1_ps(rows[i].sum[block.number]), y[i]);
}

// ---- tiles ----

// One tile for `count` rows of A: every row sees the same arithmetic in the same order as alone.
template <int count>
void compute_rows(const MatMulProblem& p, const LookupPlan& plan, const LookupRow* rows, int64_t tile, float* outputs) {
  for (int i = 0; i < count; ++i) _mm512_storeu_ps(outputs + i * kTileRows, _mm512_setzero_ps());
  for_each_block(plan, [&](const LookupBlock& block) {
    const uint32_t* line = first_line(p, plan, block, tile);
    const int64_t cell = tile * plan.groups + block.group;
    __m512 y[count];
    for (int i = 0; i < count; ++i) y[i] = _mm512_loadu_ps(outputs + i * kTileRows);
    for (int64_t plane = 0; plane < p.bits; ++plane, line += kTileRows) {
      add_plane<count>(p, plan, rows, block, line, plane_alpha(p, cell, plane), y);
    }
    if (p.offset) add_offset<count>(rows, block, p.offset + cell * kTileRows, y);
    for (int i = 0; i < count; ++i) _mm512_storeu_ps(outputs + i * kTileRows, y[i]);
  });
}

void compute_tile(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t tile, float* y) {
  int64_t i = 0;
  for (; i + 4 <= set.count; i += 4) compute_rows<4>(p, plan, set.rows + i, tile, y + i * kTileRows);
  for (; i < set.count; ++i) compute_rows<1>(p, plan, set.rows + i, tile, y + i * kTileRows);
}

void run(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  const LookupPlan plan = lookup_plan(p, kT16);
  run_lookups(p, plan, scratch, begin_tile, end_tile,
          [&](const RowSet& set, int64_t tile, float* y) { compute_tile(p, plan, set, tile, y); });
}

}  // namespace

extern const MatMulKernel kMatMul_avx512_t16 = {
    "avx512_t16", "avx512", BCQ_CPU_AVX2 | BCQ_CPU_AVX512 | BCQ_CPU_AVX512VBMI | BCQ_CPU_AVX512VNNI,
    t16_supports, t16_scratch_bytes, prepare, run};

}  // namespace bcq
