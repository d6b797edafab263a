// SPDX-License-Identifier: Apache-2.0
// BcqMatMul for AVX2: look-up tables of signed sums, read by vpshufb. T16 has 16-bit entries, read as a low and a high
// byte, and is near-exact; T8 has 8-bit entries, the class of int8 activations.
#include "kernels/bcq_matmul/avx2_many.h"
#include "kernels/bcq_matmul/avx2_one.h"
#include "kernels/bcq_matmul/lookup_prepare.h"

namespace bcq {
namespace {

// The quads 0 and 2, 1 and 3, 4 and 6, 5 and 7 of a chunk share a vector, see table_offset.
inline int first_of_two(int pair) { return 4 * (pair >> 1) + (pair & 1); }

inline void store_two(uint8_t* table, int quad, __m256i packed) {
  const __m256i quads = _mm256_permute4x64_epi64(packed, 0xd8);  // packs work lane by lane
  _mm256_store_si256(reinterpret_cast<__m256i*>(table + table_offset(quad)), quads);
}

// Entries are stored as v + 2^15, a vector of low bytes and one of high bytes.
void write_16_bits(const float* scaled, uint8_t* table) {
  const __m256i bias = _mm256_set1_epi16(INT16_MIN);
  const __m256i byte = _mm256_set1_epi16(0x00ff);
  for (int pair = 0; pair < 4; ++pair) {
    const int quad = first_of_two(pair);
    const __m256i first = _mm256_xor_si256(quad_entries(scaled + 4 * quad), bias);
    const __m256i second = _mm256_xor_si256(quad_entries(scaled + 4 * quad + 8), bias);
    store_two(table, quad, _mm256_packus_epi16(_mm256_and_si256(first, byte), _mm256_and_si256(second, byte)));
    store_two(table + kVectorTables, quad,
              _mm256_packus_epi16(_mm256_srli_epi16(first, 8), _mm256_srli_epi16(second, 8)));
  }
}

// Entries are stored as v + 128.
void write_8_bits(const float* scaled, uint8_t* table) {
  for (int pair = 0; pair < 4; ++pair) {
    const int quad = first_of_two(pair);
    const __m256i both = _mm256_packs_epi16(quad_entries(scaled + 4 * quad), quad_entries(scaled + 4 * quad + 8));
    store_two(table, quad, _mm256_xor_si256(both, _mm256_set1_epi8(INT8_MIN)));
  }
}

void prepare_t16(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const LookupPlan plan = lookup_plan(p, kT16);
  for (int64_t m = begin_row; m < end_row; ++m) prepare_row(p, plan, scratch, m, kT16.range, write_16_bits);
}

void prepare_t8(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  const LookupPlan plan = lookup_plan(p, kT8);
  for (int64_t m = begin_row; m < end_row; ++m) prepare_row(p, plan, scratch, m, kT8.range, write_8_bits);
}

template <typename One, typename Many, typename Order>
void run_in_order(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  const LookupPlan plan = lookup_plan(p, One::kEntries);
  for_each_set(p, plan, scratch, [&](const RowSet& set) {
    if (set.count == 1) return run_one<One, Order>(p, plan, set, begin_tile, end_tile);
    run_many<Many, Order>(p, plan, set, begin_tile, end_tile);
  });
}

template <typename One, typename Many>
void run(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  if (p.resident) return run_in_order<One, Many, ResidentOrder>(p, scratch, begin_tile, end_tile);
  if (p.planes > p.bits) return run_in_order<One, Many, GappedOrder>(p, scratch, begin_tile, end_tile);
  run_in_order<One, Many, DiskOrder>(p, scratch, begin_tile, end_tile);
}

}  // namespace

extern const MatMulKernel kMatMul_avx2_t16 = {
    "avx2_t16",  "avx2",         BCQ_CPU_AVX2, t16_supports, t16_scratch_bytes,
    prepare_t16, run<OneT16, PairT16>, order_line};

extern const MatMulKernel kMatMul_avx2_t8 = {
    "avx2_t8",  "avx2",       BCQ_CPU_AVX2, t8_supports, t8_scratch_bytes,
    prepare_t8, run<OneT8, PairT8>, order_line};

}  // namespace bcq
