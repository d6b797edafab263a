// SPDX-License-Identifier: Apache-2.0
// The products and look-ups of bcq.h: checks what a caller may get wrong, then asks the core. Needs no C++ library.
#include "capi/bcq.h"
#include "contract.h"
#include "core/bcq_core.h"

namespace {

constexpr uintptr_t kScratchAlignment = 64;
constexpr int64_t kLargest = INT32_MAX;

const char* check_sizes(const BcqMatrix* w) {
  using namespace bcq::contract;
  if (w == nullptr) return "matrix: got NULL";
  if (w->N < 1 || w->N > kLargest) return "matrix N: expected 1 to 2^31 - 1";
  if (w->K < 1 || w->K > kLargest) return "matrix K: expected 1 to 2^31 - 1";
  if (w->bits < kMinBits || w->bits > kMaxBits) return "matrix bits: expected 1 to 8";
  if (w->planes != 0 && (w->planes < w->bits || w->planes > kMaxBits)) return "matrix planes: expected 0, or bits to 8";
  const bool multiple = w->group_size > 0 && w->group_size <= kLargest && w->group_size % kGroupSizeMultiple == 0;
  if (!multiple && w->group_size != w->K) return "matrix group_size: expected a multiple of 32, or K";
  return nullptr;
}

bool misaligned(const void* data, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes != 0; }

const char* check_matrix(const BcqMatrix* w) {
  if (const char* wrong = check_sizes(w)) return wrong;
  if (w->codes == nullptr || misaligned(w->codes, 4)) return "matrix codes: expected 4-byte aligned data, not NULL";
  if (w->alpha_1 == nullptr || misaligned(w->alpha_1, 2)) {
    return "matrix alpha_1: expected 2-byte aligned data, not NULL";
  }
  if (misaligned(w->alpha_rest, 2) || (w->alpha_rest == nullptr) != (w->bits == 1)) {
    return "matrix alpha_rest: expected 2-byte aligned data, and NULL for one bit alone";
  }
  return misaligned(w->offset, 2) ? "matrix offset: expected 2-byte aligned data, or NULL" : nullptr;
}

// All that selects a kernel.
const char* check_shape(const BcqGemm* gemm) {
  if (gemm == nullptr || gemm->struct_bytes != sizeof(BcqGemm)) return "struct_bytes: expected sizeof(BcqGemm)";
  if (const char* wrong = check_sizes(gemm->matrix)) return wrong;
  if (gemm->M < 0 || gemm->M > kLargest) return "M: expected 0 to 2^31 - 1";
  if (gemm->type != BCQ_FLOAT32 && gemm->type != BCQ_FLOAT16) return "type: expected BCQ_FLOAT32 or BCQ_FLOAT16";
  if (gemm->accuracy_level < 0 || gemm->accuracy_level > 4) return "accuracy_level: expected 0 to 4";
  return nullptr;
}

BcqMatMulProblem problem_of(const BcqGemm& gemm) {
  const BcqMatrix& w = *gemm.matrix;
  BcqMatMulProblem p = {};
  p.M = gemm.M;
  p.K = w.K;
  p.N = w.N;
  p.group_size = w.group_size;
  p.bits = w.bits;
  p.a_is_half = gemm.type == BCQ_FLOAT16;
  p.accuracy_level = gemm.accuracy_level;
  p.a = gemm.a;
  p.a_stride = gemm.a_stride == 0 ? w.K : gemm.a_stride;
  p.y = gemm.y;
  p.y_stride = gemm.y_stride == 0 ? w.N : gemm.y_stride;
  p.codes = w.codes;
  p.alpha_1 = w.alpha_1;
  p.alpha_rest = w.alpha_rest;
  p.offset = w.offset;
  p.planes = w.planes;
  return p;
}

const char* check_buffers(const BcqGemm& gemm, const BcqMatMulProblem& p) {
  const uintptr_t element = p.a_is_half != 0 ? 2 : 4;
  if (p.a == nullptr || misaligned(p.a, element)) return "a: expected aligned data, not NULL";
  if (p.y == nullptr || misaligned(p.y, element)) return "y: expected aligned memory, not NULL";
  if (p.a_stride < p.K || p.a_stride > kLargest) return "a_stride: expected 0, or K to 2^31 - 1";
  if (p.y_stride < p.N || p.y_stride > kLargest) return "y_stride: expected 0, or N to 2^31 - 1";
  const size_t needed = bcq_matmul_scratch_bytes(&p, nullptr);
  if (needed == 0) return nullptr;
  if (gemm.scratch == nullptr || misaligned(gemm.scratch, kScratchAlignment)) {
    return "scratch: expected 64-byte aligned memory, not NULL";
  }
  return gemm.scratch_bytes < needed ? "scratch_bytes: expected what bcq_gemm_scratch_bytes says, or more" : nullptr;
}

}  // namespace

extern "C" {

int32_t bcq_abi_version(void) { return BCQ_ABI_VERSION; }

const char* bcq_version(void) { return BCQ_VERSION; }

size_t bcq_gemm_scratch_bytes(const BcqGemm* gemm) {
  if (check_shape(gemm) != nullptr || gemm->M == 0) return 0;
  const BcqMatMulProblem p = problem_of(*gemm);
  return bcq_matmul_scratch_bytes(&p, nullptr);
}

const char* bcq_gemm_kernel(const BcqGemm* gemm) {
  if (check_shape(gemm) != nullptr) return nullptr;
  const BcqMatMulProblem p = problem_of(*gemm);
  return bcq_select_matmul(&p, bcq_cpu_flags());
}

const char* bcq_gemm(const BcqGemm* gemm) {
  if (const char* wrong = check_shape(gemm)) return wrong;
  if (const char* wrong = check_matrix(gemm->matrix)) return wrong;
  if (gemm->M == 0) return nullptr;
  const BcqMatMulProblem p = problem_of(*gemm);
  if (const char* wrong = check_buffers(*gemm, p)) return wrong;
  const size_t parts = gemm->parallel_for == nullptr ? 1 : 0;  // 0: by the work
  return bcq_matmul(&p, nullptr, gemm->scratch, parts, gemm->parallel_for, gemm->pool);
}

const char* bcq_rows(const BcqMatrix* matrix, const int64_t* rows, int64_t count, float* y) {
  if (const char* wrong = check_matrix(matrix)) return wrong;
  if (count < 0) return "count: got a negative number";
  if (count == 0) return nullptr;
  if (rows == nullptr || y == nullptr) return "rows, y: expected data, not NULL";
  BcqGatherProblem p = {};
  p.count = count;
  p.K = matrix->K;
  p.N = matrix->N;
  p.group_size = matrix->group_size;
  p.bits = matrix->bits;
  p.indices = rows;
  p.y = y;
  p.codes = matrix->codes;
  p.alpha_1 = matrix->alpha_1;
  p.alpha_rest = matrix->alpha_rest;
  p.offset = matrix->offset;
  p.planes = matrix->planes;
  if (bcq_gather_bad_index(&p) >= 0) return "rows: expected each in -N to N - 1";
  return bcq_gather(&p, nullptr, 1, nullptr, nullptr);
}

}  // extern "C"
