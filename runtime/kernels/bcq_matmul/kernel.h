// SPDX-License-Identifier: Apache-2.0
// What a BcqMatMul kernel is: one row of kernels.inc. Selection takes the first row that fits, so order is preference.
//
// Rules for every kernel: results are bitwise equal for any split into row ranges and tile ranges, and a row of A gives
// the same bits alone as in a batch; NaN and Inf in A reach the outputs of their row and no others; nothing is read
// past the end of a tensor; no allocation. Shapes are validated before: kernels trust them.
// Codes may hold more planes than a problem reads: chunks lie p.planes lines apart, of which the first p.bits count.
// Functions in ISA files have internal linkage, and ISA files include no header with inline functions of external
// linkage: the linker would be free to keep the copy that was compiled for the wrong CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/bcq_core.h"

namespace bcq {

using MatMulProblem = BcqMatMulProblem;

constexpr int64_t kTileRows = 16;
constexpr int64_t kWordBits = 32;

struct MatMulKernel {
  const char* name;     // ISA and method, for example "avx2_t16"
  const char* source;   // stem of the file that holds it, for example "avx2"
  uint32_t cpu_flags;   // all of these are needed (BCQ_CPU_*)
  // Whether this kernel may run the problem (bits, accuracy_level, sizes); pointers are not to be read. nullptr: any.
  bool (*supports)(const MatMulProblem&);
  // Bytes of prepared activations for all M rows. Scratch is 64-byte aligned. nullptr: none.
  size_t (*scratch_bytes)(const MatMulProblem&);
  // Prepares the activation rows [begin, end) into scratch. nullptr: nothing to prepare.
  void (*prepare)(const MatMulProblem&, void* scratch, int64_t begin_row, int64_t end_row);
  // Computes the row tiles [begin, end) of 16 outputs each for all M rows.
  void (*run)(const MatMulProblem&, const void* scratch, int64_t begin_tile, int64_t end_tile);
  // Writes one line of codes (16 words of one chunk and plane, 4-byte aligned, to a 64-byte aligned one that does not
  // overlap) in the order that `run` reads when problem.resident is 1: the same bits in the same 64 bytes, permuted.
  // nullptr: the order of the disk is the fastest, and `run` need not look at problem.resident.
  void (*order_line)(const uint32_t* line, uint32_t* to) = nullptr;
};

// Declares the constant that each row's source file defines as `const MatMulKernel kMatMul_<name> = {...}`.
#define BCQ_MATMUL_KERNEL(name, source, flags) extern const MatMulKernel kMatMul_##name;
#include "kernels/bcq_matmul/kernels.inc"
#undef BCQ_MATMUL_KERNEL

}  // namespace bcq
