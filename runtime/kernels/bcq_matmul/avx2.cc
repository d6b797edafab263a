// SPDX-License-Identifier: Apache-2.0
// BcqMatMul for AVX2: T16 look-up tables of 16-bit signed sums, read by vpshufb as a low and a high byte table.
//
// A 64-byte line of codes (16 rows x 32 inputs of one plane) becomes two vectors of bytes, X = byte 0 | byte 1 and
// Y = byte 2 | byte 3 of the sixteen rows, one byte index per 128-bit lane, because vpshufb has one table per lane. The
// low nibbles look up quads 0, 2, 4, 6 and the high ones 1, 3, 5, 7.
//
// Bytes are summed without widening: a tree of vpavgb gives about sum / 32 (each of its 5 levels rounds up by at most
// 1/2, so 32 * average - sum lies in 0 .. 80), vpaddb gives the sum modulo 256, and both together the exact sum:
// sum = 32 * average - ((32 * average - sum) mod 256). Two cheap instructions a look-up, and none on a shuffle port.
#include <immintrin.h>

#include "kernels/bcq_matmul/t16_exact.h"
#include "kernels/bcq_matmul/t16_plan.h"
#include "kernels/bcq_matmul/t16_prepare.h"

namespace bcq {
namespace {

constexpr float kRange = 32767;   // entries are stored as v + 32768
constexpr int kRowsAtOnce = 16;   // rows of A that share one pass over a tile
constexpr int kPrefetchBytes = 4096;

// ---- tables: per chunk four vectors of low bytes, then four of high bytes: X even, X odd, Y even, Y odd quads ----

void write_chunk(const float* scaled, uint8_t* table) {
  const __m256i bias = _mm256_set1_epi16(INT16_MIN);
  const __m256i low_mask = _mm256_set1_epi16(0x00ff);
  for (int quad = 0; quad < kQuadsPerChunk; ++quad) {
    const __m256i entries = _mm256_xor_si256(quad_entries(scaled + 4 * quad), bias);
    const __m256i low = _mm256_and_si256(entries, low_mask);
    const __m256i bytes = _mm256_packus_epi16(low, _mm256_srli_epi16(entries, 8));
    const __m256i split = _mm256_permute4x64_epi64(bytes, 0xd8);  // low bytes | high bytes
    uint8_t* to = table + 64 * (quad >> 2) + 32 * (quad & 1) + 16 * (quad >> 1 & 1);
    _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(split));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + 128), _mm256_extracti128_si256(split, 1));
  }
}

void prepare(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const T16Plan plan = t16_plan(p);
  for (int64_t m = begin_row; m < end_row; ++m) prepare_row(p, plan, scratch, m, kRange, write_chunk);
}

// ---- indexes ----

// The nibbles of one line: X even, X odd, Y even, Y odd. Rows lie in the order 0-3, 8-11, 4-7, 12-15.
struct Indexes {
  __m256i nibbles[4];
};

inline __m256i four_rows(const uint32_t* words) {
  // Lane 0: byte 0 of four rows twice, byte 2 twice; lane 1: bytes 1 and 3.
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 0, 4, 8, 12, 2, 6, 10, 14, 2, 6, 10, 14,  //
                                         1, 5, 9, 13, 1, 5, 9, 13, 3, 7, 11, 15, 3, 7, 11, 15);
  const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four), order);
}

inline Indexes indexes_of(const uint32_t* line) {
  _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes, _MM_HINT_T0);
  const __m256i first = _mm256_blend_epi32(four_rows(line), four_rows(line + 8), 0xaa);
  const __m256i second = _mm256_blend_epi32(four_rows(line + 4), four_rows(line + 12), 0xaa);
  const __m256i x = _mm256_unpacklo_epi64(first, second);
  const __m256i y = _mm256_unpackhi_epi64(first, second);
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  return {{_mm256_and_si256(x, nibble), _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble),
           _mm256_and_si256(y, nibble), _mm256_and_si256(_mm256_srli_epi16(y, 4), nibble)}};
}

// Where a block's indexes come from: straight from the codes, or decoded before for several rows of A.
struct FromCodes {
  const uint32_t* line;
  int64_t stride;
  Indexes operator()(int chunk) const { return indexes_of(line + chunk * stride); }
};

struct FromBuffer {
  const Indexes* buffer;
  Indexes operator()(int chunk) const { return buffer[chunk]; }
};

// ---- look-ups ----

struct ByteSums {
  __m256i low;   // modulo 256
  __m256i high;
};

struct Averages {
  __m256i low;
  __m256i high;
};

inline __m256i look_up(const uint8_t* table, __m256i index) {
  return _mm256_shuffle_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(table)), index);
}

// Four look-ups: adds their bytes to sum and returns their average.
inline __m256i look_up_four(const uint8_t* table, const Indexes& index, __m256i& sum) {
  const __m256i a = look_up(table, index.nibbles[0]);
  const __m256i b = look_up(table + 32, index.nibbles[1]);
  sum = _mm256_add_epi8(sum, _mm256_add_epi8(a, b));
  const __m256i c = look_up(table + 64, index.nibbles[2]);
  const __m256i d = look_up(table + 96, index.nibbles[3]);
  sum = _mm256_add_epi8(sum, _mm256_add_epi8(c, d));
  return _mm256_avg_epu8(_mm256_avg_epu8(a, b), _mm256_avg_epu8(c, d));
}

template <typename Source>
inline Averages chunk_averages(const Source& source, const uint8_t* tables, int chunk, ByteSums& sums) {
  const Indexes index = source(chunk);
  const uint8_t* table = tables + size_t(chunk) * kTableBytes;
  const __m256i low = look_up_four(table, index, sums.low);
  return {low, look_up_four(table + 128, index, sums.high)};
}

inline Averages average(const Averages& a, const Averages& b) {
  return {_mm256_avg_epu8(a.low, b.low), _mm256_avg_epu8(a.high, b.high)};
}

// [a's lane 0 | b's lane 0] and [a's lane 1 | b's lane 1], the latter with its lanes exchanged: what is combined next
// lane by lane is then a's two lanes and b's two lanes. A blend is cheaper than a second permutation.
inline __m256i outer_lanes(__m256i a, __m256i b) { return _mm256_blend_epi32(a, b, 0xf0); }
inline __m256i inner_lanes(__m256i a, __m256i b) { return _mm256_permute2x128_si256(a, b, 0x21); }

// The exact signed sums of a plane's table entries over a block: rows 0-7 and 8-15, in natural order.
struct BlockSums {
  __m256i rows[2];
};

inline BlockSums exact_sums(const Averages& averages, const ByteSums& sums, int chunks) {
  const __m256i mean = _mm256_avg_epu8(outer_lanes(averages.low, averages.high), inner_lanes(averages.low, averages.high));
  const __m256i modulo = _mm256_add_epi8(outer_lanes(sums.low, sums.high), inner_lanes(sums.low, sums.high));
  const __m256i mean32 = _mm256_and_si256(_mm256_slli_epi16(mean, 5), _mm256_set1_epi8(char(0xe0)));
  const __m256i excess = _mm256_sub_epi8(mean32, modulo);
  const __m256i weights = _mm256_set1_epi16(int16_t(0xff20));  // 32 * mean - excess
  const __m256i front = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(mean, excess), weights);
  const __m256i back = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(mean, excess), weights);
  // Lane 0 of both holds sums of low bytes, lane 1 of high bytes. Each entry carries a bias of 32768 = 256 * 128.
  const __m256i low = _mm256_permute2x128_si256(front, back, 0x20);
  const __m256i bias = _mm256_set1_epi16(int16_t(128 * kQuadsPerChunk * chunks));
  const __m256i high = _mm256_sub_epi16(_mm256_permute2x128_si256(front, back, 0x31), bias);
  const __m256i bytes = _mm256_set1_epi32(0x01000001);  // low + 256 * high
  return {{_mm256_madd_epi16(_mm256_unpacklo_epi16(low, high), bytes),
           _mm256_madd_epi16(_mm256_unpackhi_epi16(low, high), bytes)}};
}

template <int chunks, typename Source>
inline BlockSums block_sums(const Source& source, const uint8_t* tables) {
  const __m256i zero = _mm256_setzero_si256();
  const Averages none = {zero, zero};
  ByteSums sums = {zero, zero};
  Averages front = chunk_averages(source, tables, 0, sums);
  front = average(front, chunks > 1 ? chunk_averages(source, tables, 1, sums) : none);
  Averages back = none;
  if (chunks > 2) {
    back = chunk_averages(source, tables, 2, sums);
    back = average(back, chunks > 3 ? chunk_averages(source, tables, 3, sums) : none);
  }
  return exact_sums(average(front, back), sums, chunks);
}

// ---- outputs ----

struct Outputs {
  __m256 rows[2];
};

inline __m256 eight_halves(const uint16_t* values) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

// y += alpha * (s * sum)
inline void add_scaled(Outputs& y, const uint16_t* alpha, float scale, const BlockSums& sums) {
  const __m256 s = _mm256_set1_ps(scale);
  const __m256 first = _mm256_mul_ps(s, _mm256_cvtepi32_ps(sums.rows[0]));
  const __m256 second = _mm256_mul_ps(s, _mm256_cvtepi32_ps(sums.rows[1]));
  y.rows[0] = _mm256_fmadd_ps(eight_halves(alpha), first, y.rows[0]);
  y.rows[1] = _mm256_fmadd_ps(eight_halves(alpha + 8), second, y.rows[1]);
}

// y += offset * (sum of the block's activations)
inline void add_offset(Outputs& y, const uint16_t* offset, float sum) {
  const __m256 s = _mm256_set1_ps(sum);
  y.rows[0] = _mm256_fmadd_ps(eight_halves(offset), s, y.rows[0]);
  y.rows[1] = _mm256_fmadd_ps(eight_halves(offset + 8), s, y.rows[1]);
}

void store(const MatMulProblem& p, int64_t m, int64_t tile, const float* y) {
  const int64_t first = tile * kTileRows;
  const size_t count = size_t(p.N - first < kTileRows ? p.N - first : kTileRows);
  const int64_t at = m * p.y_stride + first;
  if (!p.a_is_half) {
    std::memcpy(static_cast<float*>(p.y) + at, y, count * sizeof(float));
    return;
  }
  alignas(16) uint16_t halves[kTileRows];
  for (int i = 0; i < kTileRows; i += 8) {
    const __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(y + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_store_si128(reinterpret_cast<__m128i*>(halves + i), eight);
  }
  std::memcpy(static_cast<uint16_t*>(p.y) + at, halves, count * sizeof(uint16_t));
}

void store(const MatMulProblem& p, int64_t m, int64_t tile, const Outputs& y) {
  alignas(32) float values[kTileRows];
  _mm256_store_ps(values, y.rows[0]);
  _mm256_store_ps(values + 8, y.rows[1]);
  store(p, m, tile, values);
}

void store_exact(const MatMulProblem& p, const T16Plan& plan, int64_t m, int64_t tile) {
  float y[kTileRows];
  exact_tile(p, plan, m, tile, y);
  store(p, m, tile, y);
}

// ---- one row of A ----

template <int chunks>
inline void add_block(const MatMulProblem& p, const T16Plan& plan, const T16Row& row, const T16Block& block, int64_t tile,
                      Outputs& y) {
  const int64_t cell = tile * plan.groups + block.group;
  const uint32_t* line = p.codes + (tile * plan.chunks + block.first_chunk) * p.bits * kTileRows;
  const uint8_t* tables = row.tables + size_t(block.first_chunk) * kTableBytes;
  const float scale = row.scale[block.number];
  for (int64_t plane = 0; plane < p.bits; ++plane, line += kTileRows) {
    const BlockSums sums = block_sums<chunks>(FromCodes{line, p.bits * kTileRows}, tables);
    add_scaled(y, t16_alpha(p, cell, plane), scale, sums);
  }
  if (p.offset) add_offset(y, p.offset + cell * kTileRows, row.sum[block.number]);
}

void tile_for_one(const MatMulProblem& p, const T16Plan& plan, const T16Row& row, int64_t m, int64_t tile) {
  Outputs y = {{_mm256_setzero_ps(), _mm256_setzero_ps()}};
  for_each_block(plan, [&](const T16Block& block) {
    if (block.chunks == 4) return add_block<4>(p, plan, row, block, tile, y);
    if (block.chunks == 3) return add_block<3>(p, plan, row, block, tile, y);
    if (block.chunks == 2) return add_block<2>(p, plan, row, block, tile, y);
    add_block<1>(p, plan, row, block, tile, y);
  });
  store(p, m, tile, y);
}

void run(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  const T16Plan plan = t16_plan(p);
  for (int64_t m = 0; m < p.M; ++m) {
    const T16Row row = t16_row(plan, scratch, m);
    for (int64_t tile = begin_tile; tile < end_tile; ++tile) {
      if (*row.out_of_range) store_exact(p, plan, m, tile);
      else tile_for_one(p, plan, row, m, tile);
    }
  }
}

}  // namespace

extern const MatMulKernel kMatMul_avx2_t16 = {"avx2_t16", "avx2", BCQ_CPU_AVX2, nullptr, t16_scratch_bytes, prepare, run};

}  // namespace bcq
