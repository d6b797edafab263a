// SPDX-License-Identifier: Apache-2.0
// The packed operators: bcq.h computes them on mapped codes.
#include <algorithm>

#include "contract.h"
#include "native/operator.h"

namespace bcq::native {
namespace {

void refuse(const char* wrong) {
  if (wrong != nullptr) throw Wrong(wrong);
}

class MatMul : public Operator {
 public:
  explicit MatMul(NodeReader& node)
      : matrix_(node.matrix()), level_(int32_t(node.number("accuracy_level", 0))), a_(node.input(0)), y_(node.output()) {}

  void shape(Values& values) const override {
    const Tensor& a = values[a_];
    if (a.type != Type::kFloat || a.dims.rank == 0 || a.last() != matrix_.K) {
      throw Wrong("A: got shape " + a.dims.text() + ", expected floats [..., " + std::to_string(matrix_.K) + "]");
    }
    Dims dims = a.dims;
    dims[dims.rank - 1] = matrix_.N;
    values.make(y_, Type::kFloat, dims);
  }

  // Kernels are chosen by the number of rows, too.
  size_t scratch_bytes(const Values& values, size_t) const override {
    size_t most = 0;
    BcqGemm gemm = gemm_of();
    for (gemm.M = 1; gemm.M <= std::min<int64_t>(values[a_].rows(), kPanel); ++gemm.M) {
      most = std::max(most, bcq_gemm_scratch_bytes(&gemm));
    }
    return most;
  }

  void run(Values& values, const Work& work) const override {
    BcqGemm gemm = gemm_of();
    gemm.M = values[a_].rows();
    gemm.a = values[a_].data;
    gemm.y = values[y_].data;
    gemm.scratch = work.scratch;
    gemm.scratch_bytes = bcq_gemm_scratch_bytes(&gemm);
    gemm.parallel_for = work.team.parallel_for();
    gemm.pool = work.team.pool();
    refuse(bcq_gemm(&gemm));
  }

 private:
  static constexpr int64_t kPanel = 64;  // scratch does not grow beyond

  BcqGemm gemm_of() const {
    BcqGemm gemm = {};
    gemm.struct_bytes = sizeof gemm;
    gemm.matrix = &matrix_;
    gemm.accuracy_level = level_;
    return gemm;
  }

  const BcqMatrix matrix_;
  const int32_t level_;
  const int a_, y_;
};

class Gather : public Operator {
 public:
  explicit Gather(NodeReader& node) : matrix_(node.matrix()), rows_(node.input(0)), y_(node.output()) {}

  void shape(Values& values) const override {
    const Tensor& rows = values[rows_];
    check_indices(rows, matrix_.N);
    Dims dims = rows.dims;
    dims.push(matrix_.K);
    values.make(y_, Type::kFloat, dims);
  }

  void run(Values& values, const Work&) const override {
    const Tensor& rows = values[rows_];
    refuse(bcq_rows(&matrix_, rows.integers(), rows.count(), values[y_].floats()));
  }

 private:
  const BcqMatrix matrix_;
  const int rows_, y_;
};

}  // namespace

std::unique_ptr<Operator> make_packed(NodeReader& node) {
  const capi::Node& of = node.node();
  if (of.domain != contract::kDomain) return nullptr;
  if (of.inputs.size() != 5) throw Wrong("expected 5 inputs");
  if (of.op == contract::kBcqMatMul.name) return std::make_unique<MatMul>(node);
  if (of.op == contract::kBcqGather.name) return std::make_unique<Gather>(node);
  return nullptr;
}

}  // namespace bcq::native
