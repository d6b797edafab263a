// SPDX-License-Identifier: Apache-2.0
// BcqMatMul for AVX2: T16 look-up tables of 16-bit signed sums, read by vpshufb as a low and a high byte table.
#include "kernels/bcq_matmul/avx2_sums.h"
#include "kernels/bcq_matmul/lookup_plan.h"
#include "kernels/bcq_matmul/lookup_prepare.h"
#include "kernels/bcq_matmul/lookup_rows.h"

namespace bcq {
namespace {

constexpr int kMaxBits = 8;

// ---- tables: entries are stored as v + 2^15, a low and a high byte ----

void write_chunk(const float* scaled, uint8_t* table) {
  const __m256i bias = _mm256_set1_epi16(INT16_MIN);
  const __m256i low_mask = _mm256_set1_epi16(0x00ff);
  for (int quad = 0; quad < kQuadsPerChunk; ++quad) {
    const __m256i entries = _mm256_xor_si256(quad_entries(scaled + 4 * quad), bias);
    const __m256i low = _mm256_and_si256(entries, low_mask);
    const __m256i bytes = _mm256_packus_epi16(low, _mm256_srli_epi16(entries, 8));
    const __m256i split = _mm256_permute4x64_epi64(bytes, 0xd8);  // low bytes | high bytes
    uint8_t* to = table + table_offset(quad);
    _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(split));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + kHighBytes), _mm256_extracti128_si256(split, 1));
  }
}

void prepare(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const LookupPlan plan = lookup_plan(p, kT16);
  for (int64_t m = begin_row; m < end_row; ++m) prepare_row(p, plan, scratch, m, kT16.range, write_chunk);
}

// ---- outputs ----

struct Outputs {
  __m256 rows[2];
};

inline Outputs load(const float* y) { return {{_mm256_load_ps(y), _mm256_load_ps(y + 8)}}; }

inline void store(float* y, const Outputs& outputs) {
  _mm256_store_ps(y, outputs.rows[0]);
  _mm256_store_ps(y + 8, outputs.rows[1]);
}

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

// ---- tiles ----

inline void add_block_offset(const MatMulProblem& p, const LookupRow& row, const LookupBlock& block, int64_t cell, Outputs& y) {
  if (p.offset) add_offset(y, p.offset + cell * kTileRows, row.sum[block.number]);
}

// The look-ups of all planes of a block for one row of A.
template <int chunks>
inline void look_up_planes(const MatMulProblem& p, const uint32_t* line, const uint8_t* tables, Merged* merged) {
  for (int64_t plane = 0; plane < p.bits; ++plane, line += kTileRows) {
    keep_in_memory(tables);
    merged[plane] = look_up_block<chunks>(FromCodes{line, p.bits * kTileRows}, tables);
  }
}

// Blocks of one row of A whose look-ups are done. Their sums are taken for some blocks at once, so that the long chains
// of instructions of different planes and blocks overlap.
struct Pending {
  Merged merged[kMaxBits];
  LookupBlock blocks[kMaxBits];
  int64_t count;
};

// Not inlined: compilers would keep its constants in registers during the look-ups, which need all of them.
__attribute__((noinline)) void add_pending(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row, int64_t tile,
                                           Pending& pending, float* outputs) {
  const Merged* merged = pending.merged;
  Outputs y = load(outputs);
  for (int64_t i = 0; i < pending.count; ++i) {
    const LookupBlock& block = pending.blocks[i];
    const int64_t cell = tile * plan.groups + block.group;
    for (int64_t plane = 0; plane < p.bits; ++plane, ++merged) {
      add_scaled(y, plane_alpha(p, cell, plane), row.scale[block.number], exact_sums(*merged, int(block.chunks)));
    }
    add_block_offset(p, row, block, cell, y);
  }
  pending.count = 0;
  store(outputs, y);
}

void tile_for_one(const MatMulProblem& p, const LookupPlan& plan, const LookupRow& row, int64_t tile, float* y) {
  const int64_t room = kMaxBits / p.bits;
  store(y, Outputs{});
  Pending pending;
  pending.count = 0;
  for_each_block(plan, [&](const LookupBlock& block) {
    const uint32_t* line = first_line(p, plan, block, tile);
    const uint8_t* tables = first_table(plan, row, block);
    Merged* merged = pending.merged + pending.count * p.bits;
    switch (block.chunks) {
      case 4: look_up_planes<4>(p, line, tables, merged); break;
      case 3: look_up_planes<3>(p, line, tables, merged); break;
      case 2: look_up_planes<2>(p, line, tables, merged); break;
      default: look_up_planes<1>(p, line, tables, merged);
    }
    pending.blocks[pending.count++] = block;
    if (pending.count == room) add_pending(p, plan, row, tile, pending, y);
  });
  add_pending(p, plan, row, tile, pending, y);
}

// Several rows of A share the indexes. Every row sees the same arithmetic in the same order as alone.
template <int chunks>
inline void add_block(const MatMulProblem& p, const LookupPlan& plan, const LookupRow* rows, int64_t count, const LookupBlock& block,
                      const uint32_t* line, int64_t cell, Outputs* y) {
  for (int64_t plane = 0; plane < p.bits; ++plane, line += kTileRows) {
    LineNibbles lines[chunks];
    for (int c = 0; c < chunks; ++c) lines[c] = nibbles_of(line + c * p.bits * kTileRows);
    for (int64_t i = 0; i < count; ++i) {
      const Merged merged = look_up_block<chunks>(FromBuffer{lines}, first_table(plan, rows[i], block));
      add_scaled(y[i], plane_alpha(p, cell, plane), rows[i].scale[block.number], exact_sums(merged, chunks));
    }
  }
  for (int64_t i = 0; i < count; ++i) add_block_offset(p, rows[i], block, cell, y[i]);
}

// y starts at zero.
void tile_for_many(const MatMulProblem& p, const LookupPlan& plan, const LookupRow* rows, int64_t count, int64_t tile,
                   Outputs* y) {
  for_each_block(plan, [&](const LookupBlock& block) {
    const uint32_t* line = first_line(p, plan, block, tile);
    const int64_t cell = tile * plan.groups + block.group;
    switch (block.chunks) {
      case 4: return add_block<4>(p, plan, rows, count, block, line, cell, y);
      case 3: return add_block<3>(p, plan, rows, count, block, line, cell, y);
      case 2: return add_block<2>(p, plan, rows, count, block, line, cell, y);
      default: return add_block<1>(p, plan, rows, count, block, line, cell, y);
    }
  });
}

void compute_tile(const MatMulProblem& p, const LookupPlan& plan, const RowSet& set, int64_t tile, float* y) {
  if (set.count == 1) return tile_for_one(p, plan, set.rows[0], tile, y);
  Outputs outputs[kRowsAtOnce] = {};
  tile_for_many(p, plan, set.rows, set.count, tile, outputs);
  for (int64_t i = 0; i < set.count; ++i) store(y + i * kTileRows, outputs[i]);
}

void run(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  const LookupPlan plan = lookup_plan(p, kT16);
  run_lookups(p, plan, scratch, begin_tile, end_tile,
          [&](const RowSet& set, int64_t tile, float* y) { compute_tile(p, plan, set, tile, y); });
}

}  // namespace

extern const MatMulKernel kMatMul_avx2_t16 = {"avx2_t16", "avx2", BCQ_CPU_AVX2, t16_supports, t16_scratch_bytes, prepare, run};

}  // namespace bcq
