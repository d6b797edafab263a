// SPDX-License-Identifier: Apache-2.0
// Look-ups for AVX-512 with VBMI and VNNI: from lines of codes and tables to exact sums of table entries.
//
// A 64-byte line of codes is one vector: dword r holds 32 inputs of row r. vpermb reads a table of 64 bytes, so byte j
// of every dword looks up its own quad (index = nibble | 16 j), low nibbles the quads 0, 2, 4, 6 and high nibbles
// 1, 3, 5, 7, and vpdpbusd adds the four bytes of a dword to the 32-bit sum of its row.
// T16 stores an entry v as v = 255 hi + lo with a signed byte hi and an unsigned byte lo: each is one operand of
// vpdpbusd, with 255 and 1 as the other, so that both go into the same sum and no correction is left.
#pragma once

#include <immintrin.h>

#include "kernels/bcq_matmul/lookup_plan.h"
#include "kernels/bcq_matmul/lookup_prepare.h"

namespace bcq {
namespace {

// ---- indexes ----

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
  const __m512i words = _mm512_loadu_si512(line);
  const __m512i nibble = _mm512_set1_epi32(0x0f0f0f0f);
  const __m512i quads = _mm512_set1_epi32(0x30201000);
  // A product moves the high nibbles down on another port than a shift would.
  const __m512i moved = _mm512_mulhi_epu16(_mm512_set1_epi16(1 << 12), load_again(line));
  return {_mm512_ternarylogic_epi32(words, nibble, quads, 0xea), _mm512_ternarylogic_epi32(moved, nibble, quads, 0xea)};
}

// ---- methods: how a chunk's tables are written and read ----

inline __m512i load_table(const uint8_t* table) { return _mm512_load_si512(table); }

// Sums of one row of A and one plane. Two chains of vpdpbusd hide its latency where few sums are alive.
template <bool two_chains>
struct Sums {
  static constexpr int kChains = two_chains ? 2 : 1;
  __m512i chain[kChains];
  __m512i& at(int i) { return chain[i % kChains]; }
  __m512i total() { return two_chains ? _mm512_add_epi32(at(0), at(1)) : at(0); }

  // After look-ups and around the end of a loop: GCC 12 would have two registers for a sum, and moves between them.
  __attribute__((always_inline)) void keep_in_one_register() {
#ifdef __AVX512F__  // not where tests emulate the instructions
    asm("" : "+v"(at(0)));
    if (two_chains) asm("" : "+v"(at(1)));
#endif
  }
};

template <typename AnySums, int rows, int planes>
__attribute__((always_inline)) inline void keep_in_one_register(AnySums (&sums)[rows][planes]) {
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < planes; ++i) sums[r][i].keep_in_one_register();
  }
}

// Of each chunk 64 bytes each of: hi of even quads, hi of odd quads, lo of even quads, lo of odd quads.
struct T16 {
  static constexpr Entries kEntries = kT16;

  struct Tables {
    __m512i parts[4];  // in that order
  };
  static Tables load(const uint8_t* table) {
    return {{load_table(table), load_table(table + 64), load_table(table + 128), load_table(table + 192)}};
  }

  template <typename AnySums>
  static void look_up(const Tables& tables, const Indexes& index, AnySums& sums) {
    const __m512i most = _mm512_set1_epi8(char(0xff));
    const __m512i one = _mm512_set1_epi8(1);
    sums.at(0) = _mm512_dpbusd_epi32(sums.at(0), most, _mm512_permutexvar_epi8(index.even, tables.parts[0]));
    sums.at(1) = _mm512_dpbusd_epi32(sums.at(1), _mm512_permutexvar_epi8(index.even, tables.parts[2]), one);
    sums.at(0) = _mm512_dpbusd_epi32(sums.at(0), most, _mm512_permutexvar_epi8(index.odd, tables.parts[1]));
    sums.at(1) = _mm512_dpbusd_epi32(sums.at(1), _mm512_permutexvar_epi8(index.odd, tables.parts[3]), one);
  }

  static void write_chunk(const float* scaled, uint8_t* table) {
    const __m256i bias = _mm256_set1_epi16(127 * 255);
    const __m256i byte = _mm256_set1_epi16(0x00ff);
    for (int quad = 0; quad < kQuadsPerChunk; ++quad) {
      const __m256i entries = _mm256_add_epi16(quad_entries(scaled + 4 * quad), bias);
      // floor(u / 255) = (u + 1 + (u >> 8)) >> 8 for 0 <= u < 65535, and u <= 64769 here.
      const __m256i next = _mm256_add_epi16(entries, _mm256_set1_epi16(1));
      const __m256i quotient = _mm256_srli_epi16(_mm256_add_epi16(next, _mm256_srli_epi16(entries, 8)), 8);
      const __m256i low = _mm256_sub_epi16(entries, _mm256_mullo_epi16(quotient, byte));
      const __m256i high = _mm256_and_si256(_mm256_sub_epi16(quotient, _mm256_set1_epi16(127)), byte);
      const __m256i split = _mm256_permute4x64_epi64(_mm256_packus_epi16(high, low), 0xd8);  // hi | lo
      uint8_t* to = table + 64 * (quad & 1) + 16 * (quad >> 1);
      _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(split));
      _mm_store_si128(reinterpret_cast<__m128i*>(to + 128), _mm256_extracti128_si256(split, 1));
    }
  }
};

// Of each chunk 64 bytes of even quads and 64 of odd ones.
struct T8 {
  static constexpr Entries kEntries = kT8;

  struct Tables {
    __m512i parts[2];
  };
  static Tables load(const uint8_t* table) { return {{load_table(table), load_table(table + 64)}}; }

  template <typename AnySums>
  static void look_up(const Tables& tables, const Indexes& index, AnySums& sums) {
    const __m512i one = _mm512_set1_epi8(1);
    sums.at(0) = _mm512_dpbusd_epi32(sums.at(0), one, _mm512_permutexvar_epi8(index.even, tables.parts[0]));
    sums.at(1) = _mm512_dpbusd_epi32(sums.at(1), one, _mm512_permutexvar_epi8(index.odd, tables.parts[1]));
  }

  static void write_chunk(const float* scaled, uint8_t* table) {
    for (int quad = 0; quad < kQuadsPerChunk; ++quad) {
      const __m256i entries = quad_entries(scaled + 4 * quad);
      const __m128i front = _mm256_castsi256_si128(entries);
      const __m128i bytes = _mm_packs_epi16(front, _mm256_extracti128_si256(entries, 1));
      _mm_store_si128(reinterpret_cast<__m128i*>(table + 64 * (quad & 1) + 16 * (quad >> 1)), bytes);
    }
  }
};

// ---- one block ----

inline __m512 sixteen_halves(const uint16_t* values) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

// A row's address in scratch, that of its successors by a stride: eight pointers would not fit into registers.
struct Rows {
  LookupRow first;
  size_t row_bytes;
  const uint8_t* tables(int i) const { return first.tables + size_t(i) * row_bytes; }
  float out(int i) const { return at(first.out, i); }
  __m512 scale(int i, int64_t block) const { return broadcast(first.scale, i, block); }
  __m512 sum(int i, int64_t block) const { return broadcast(first.sum, i, block); }

 private:
  __m512 broadcast(const float* values, int i, int64_t block) const {
    return _mm512_set1_ps(at(values + block, i));
  }
  float at(const float* values, int i) const {
    return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(values) + size_t(i) * row_bytes);
  }
};

inline Indexes next_indexes(const uint32_t* line, int64_t ahead) {
  _mm_prefetch(reinterpret_cast<const char*>(line + ahead), _MM_HINT_T1);
  return indexes_of(line);
}

// The look-ups of one chunk. Rows of A share the indexes, planes what is loaded from the tables.
template <typename Method, int rows, int planes, typename AnySums>
__attribute__((always_inline)) inline void look_up_chunk(const uint32_t* line, int64_t ahead, const uint8_t* table,
                                                         size_t row_bytes, AnySums (&sums)[rows][planes]) {
  Indexes index[planes];
#pragma GCC unroll 8
  for (int i = 0; i < planes && rows > 1; ++i) index[i] = next_indexes(line + i * kTileRows, ahead);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    // GCC 12 loads tables again for each plane without the barrier, and puts them on the stack if they are const.
    typename Method::Tables tables = Method::load(table + size_t(r) * row_bytes);
    if (planes > 1) asm volatile("" ::: "memory");
#pragma GCC unroll 8
    for (int i = 0; i < planes; ++i) {
      if (rows == 1) index[i] = next_indexes(line + i * kTileRows, ahead);  // later, which saves registers
      Method::look_up(tables, index[i], sums[r][i]);
      sums[r][i].keep_in_one_register();
    }
  }
}

// y += alpha * (s * sum) for some rows of A and some consecutive planes of one block. line: the first of these planes;
// step: words from a chunk to the next.
template <typename Method, int rows, int planes>
__attribute__((always_inline)) inline void add_planes(const MatMulProblem& p, const Rows& a, const LookupBlock& block,
                                                      int64_t cell, int64_t plane, int64_t step,
                                                      const uint32_t* line, int64_t ahead, __m512* y) {
  constexpr bool two_chains = rows * planes <= 4;
  Sums<two_chains> sums[rows][planes];
#pragma GCC unroll 8
  for (auto& row : sums) {
#pragma GCC unroll 8
    for (auto& sum : row) sum.at(0) = sum.at(1) = _mm512_setzero_si512();
  }
  const uint8_t* table = a.tables(0) + size_t(block.first_chunk) * Method::kEntries.table_bytes;
  int64_t left = block.chunks;
  asm("" : "+r"(left));  // knowing that it is at most four, GCC would unroll, and load the tables for each plane
  do {
    look_up_chunk<Method, rows, planes>(line, ahead, table, a.row_bytes, sums);
    line += step;
    table += Method::kEntries.table_bytes;
    keep_in_one_register(sums);
  } while (--left > 0);
  keep_in_one_register(sums);
#pragma GCC unroll 8
  for (int i = 0; i < planes; ++i) {
    const __m512 alpha = sixteen_halves(plane_alpha(p, cell, plane + i));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const __m512 sum = _mm512_cvtepi32_ps(sums[r][i].total());
      y[r] = _mm512_fmadd_ps(alpha, _mm512_mul_ps(a.scale(r, block.number), sum), y[r]);
    }
  }
}

// y += offset * (sum of the block's activations)
template <int rows>
inline void add_offset(const MatMulProblem& p, const Rows& a, const LookupBlock& block, int64_t cell, __m512* y) {
  const __m512 offset = sixteen_halves(p.offset + cell * kTileRows);
  for (int r = 0; r < rows; ++r) y[r] = _mm512_fmadd_ps(offset, a.sum(r, block.number), y[r]);
}

// The planes of one block from `plane` on; up to `most` of them share what is loaded from the tables.
template <typename Method, int rows, int most>
__attribute__((always_inline)) inline void add_block(const MatMulProblem& p, const Rows& a, const LookupBlock& block,
                                                     int64_t cell, int64_t plane, int64_t bits, int64_t step,
                                                     const uint32_t* line, int64_t ahead, __m512* y) {
  for (; plane + most <= bits; plane += most) {
    add_planes<Method, rows, most>(p, a, block, cell, plane, step, line + plane * kTileRows, ahead, y);
  }
  if constexpr (most > 1) add_block<Method, rows, most - 1>(p, a, block, cell, plane, bits, step, line, ahead, y);
}

}  // namespace
}  // namespace bcq
