// SPDX-License-Identifier: Apache-2.0
// The specification of BcqMatMul in portable C++. Per row: y = sum over groups of
//   sum_i alpha_i * (sum of +-a over the group)  +  offset * (sum of a over the group).
#include "core/half.h"
#include "kernels/bcq_matmul/kernel.h"

namespace bcq {
namespace {

constexpr int64_t kLanes = kTileRows;

int64_t chunks(const MatMulProblem& p) { return (p.K + kWordBits - 1) / kWordBits; }
int64_t groups(const MatMulProblem& p) { return (p.K - 1) / p.group_size + 1; }

size_t scratch_bytes(const MatMulProblem& p) { return p.a_is_half ? size_t(p.M) * size_t(p.K) * sizeof(float) : 0; }

void prepare(const MatMulProblem& p, void* scratch, int64_t begin_row, int64_t end_row) {
  if (!p.a_is_half) return;
  for (int64_t m = begin_row; m < end_row; ++m) {
    const uint16_t* from = static_cast<const uint16_t*>(p.a) + m * p.a_stride;
    float* to = static_cast<float*>(scratch) + m * p.K;
    for (int64_t k = 0; k < p.K; ++k) to[k] = half_to_float(from[k]);
  }
}

const float* activations(const MatMulProblem& p, const void* scratch, int64_t m) {
  return p.a_is_half ? static_cast<const float*>(scratch) + m * p.K : static_cast<const float*>(p.a) + m * p.a_stride;
}

// sum[r] += +-a over one chunk, the signs of row r in words[r]. Sixteen rows side by side, so that compilers vectorize.
void add_signed(const uint32_t* words, const float* a, int64_t count, double* sum) {
  double chunk[kLanes] = {};
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t r = 0; r < kLanes; ++r) chunk[r] += double(((words[r] >> j) & 1u) ? a[j] : -a[j]);
  }
  for (int64_t r = 0; r < kLanes; ++r) sum[r] += chunk[r];
}

// y[r] += alpha[r] * sum[r]
void add_scaled(const uint16_t* alpha, const double* sum, double* y) {
  for (int64_t r = 0; r < kLanes; ++r) y[r] += double(half_to_float(alpha[r])) * sum[r];
}

// One group of one tile: chunks [begin, end).
void add_group(const MatMulProblem& p, const float* a, int64_t tile, int64_t group, int64_t begin, int64_t end,
               double* y) {
  const int64_t cell = tile * groups(p) + group;
  for (int64_t plane = 0; plane < p.bits; ++plane) {
    double sum[kLanes] = {};
    for (int64_t c = begin; c < end; ++c) {
      const int64_t left = p.K - c * kWordBits;
      const uint32_t* words = p.codes + ((tile * chunks(p) + c) * p.planes + plane) * kLanes;
      add_signed(words, a + c * kWordBits, left < kWordBits ? left : kWordBits, sum);
    }
    const uint16_t* alpha =
        plane == 0 ? p.alpha_1 + cell * kLanes : p.alpha_rest + (cell * (p.bits - 1) + plane - 1) * kLanes;
    add_scaled(alpha, sum, y);
  }
  if (p.offset == nullptr) return;
  double total = 0;
  for (int64_t k = begin * kWordBits; k < end * kWordBits && k < p.K; ++k) total += a[k];
  double sum[kLanes];
  for (double& s : sum) s = total;
  add_scaled(p.offset + cell * kLanes, sum, y);
}

void store(const MatMulProblem& p, int64_t m, int64_t tile, const double* y) {
  for (int64_t r = 0; r < kLanes && tile * kLanes + r < p.N; ++r) {
    const int64_t at = m * p.y_stride + tile * kLanes + r;
    const float value = canonical(float(y[r]));
    if (p.a_is_half) static_cast<uint16_t*>(p.y)[at] = float_to_half(value);
    else static_cast<float*>(p.y)[at] = value;
  }
}

void run(const MatMulProblem& p, const void* scratch, int64_t begin_tile, int64_t end_tile) {
  // A row-wise group may end inside a chunk, but only the last one: the chunk then belongs to the last group.
  const int64_t group_chunks = (p.group_size < p.K ? p.group_size : p.K + kWordBits - 1) / kWordBits;
  for (int64_t tile = begin_tile; tile < end_tile; ++tile) {
    for (int64_t m = 0; m < p.M; ++m) {
      double y[kLanes] = {};
      for (int64_t g = 0; g < groups(p); ++g) {
        const int64_t begin = g * group_chunks;
        const int64_t end = begin + group_chunks < chunks(p) ? begin + group_chunks : chunks(p);
        add_group(p, activations(p, scratch, m), tile, g, begin, end, y);
      }
      store(p, m, tile, y);
    }
  }
}

}  // namespace

extern const MatMulKernel kMatMul_scalar = {"scalar", "scalar", 0, nullptr, scratch_bytes, prepare, run};

}  // namespace bcq
