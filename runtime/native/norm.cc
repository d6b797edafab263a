// SPDX-License-Identifier: Apache-2.0
// Sums over the last dimension: LayerNormalization, and the ReduceMean and ReduceSum that other norms and lengths are
// made of. A sum goes over a fixed number of lanes, so it has the same bits on every CPU.
#include "native/lanes.h"
#include "native/operator.h"

#include <cmath>

namespace bcq::native {
namespace {

class LayerNorm : public Operator {
 public:
  explicit LayerNorm(NodeReader& node)
      : x_(node.input(0)), scale_(node.input(1)), bias_(node.has(2) ? node.input(2) : -1), y_(node.output()),
        axis_(node.number("axis", -1)), epsilon_(node.real("epsilon", 1e-5f)) {
    node.number("stash_type", 1);
    if (node.node().outputs.size() > 1) throw Wrong("outputs: got its mean, too, expected the result alone");
  }

  void shape(Values& values) const override {
    const Tensor& x = values[x_];
    if (x.type != Type::kFloat || axis_of(axis_, x.dims.rank) != x.dims.rank - 1) {
      throw Wrong("expected floats, and the last axis");
    }
    for (const int of : {scale_, bias_}) {
      if (of >= 0 && (values[of].type != Type::kFloat || values[of].count() != x.last())) {
        throw Wrong("scale and bias: expected " + std::to_string(x.last()) + " floats each");
      }
    }
    values.make(y_, Type::kFloat, Dims(x.dims));
  }

  void run(Values& values, const Work& work) const override {
    const Tensor& x = values[x_];
    const int64_t n = x.last();
    const float *scale = values[scale_].floats(), *bias = bias_ < 0 ? nullptr : values[bias_].floats();
    float* y = values[y_].floats();
    work.team.share_rows(x.rows(), n, [&](int64_t begin, int64_t end, size_t) {
      for (int64_t i = begin; i < end; ++i) row(y + i * n, x.floats() + i * n, scale, bias, n);
    });
  }

 private:
  void row(float* __restrict y, const float* __restrict x, const float* __restrict scale, const float* __restrict bias,
           int64_t n) const {
    const float mean = sum(x, n) / float(n);
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] - mean;
    const float factor = 1.0f / std::sqrt(dot(y, y, n) / float(n) + epsilon_);
    if (bias == nullptr) {
      for (int64_t i = 0; i < n; ++i) y[i] = y[i] * factor * scale[i];
    } else {
      for (int64_t i = 0; i < n; ++i) y[i] = y[i] * factor * scale[i] + bias[i];
    }
  }

  const int x_, scale_, bias_, y_;
  const int64_t axis_;
  const float epsilon_;
};

class Reduce : public Operator {
 public:
  explicit Reduce(NodeReader& node)
      : is_mean_(node.node().op == "ReduceMean"), keeps_(node.number("keepdims", 1) != 0), x_(node.input(0)),
        axes_(node.input(1)), y_(node.output()) {
    node.number("noop_with_empty_axes", 0);
  }

  void shape(Values& values) const override {
    const Tensor &x = values[x_], &axes = values[axes_];
    const bool one = axes.type == Type::kInteger && axes.count() == 1;
    if (!one || axis_of(axes.integers()[0], x.dims.rank) != x.dims.rank - 1) throw Wrong("axes: expected the last one");
    if (is_mean_ && x.type == Type::kInteger) throw Wrong("it is not supported for integers");
    Dims dims = x.dims;
    if (keeps_) dims[dims.rank - 1] = 1;
    else --dims.rank;
    values.make(y_, x.type, dims);
  }

  void run(Values& values, const Work& work) const override {
    const Tensor &x = values[x_], &y = values[y_];
    const int64_t n = x.last();
    if (x.type == Type::kInteger) {
      for (int64_t i = 0; i < y.count(); ++i) y.integers()[i] = total(x.integers() + i * n, n);
      return;
    }
    const float divisor = is_mean_ ? float(n) : 1.0f;
    work.team.share_rows(x.rows(), n, [&](int64_t begin, int64_t end, size_t) {
      for (int64_t i = begin; i < end; ++i) y.floats()[i] = sum(x.floats() + i * n, n) / divisor;
    });
  }

 private:
  static int64_t total(const int64_t* x, int64_t n) {
    uint64_t all = 0;
    for (int64_t i = 0; i < n; ++i) all += uint64_t(x[i]);
    return int64_t(all);
  }

  const bool is_mean_, keeps_;
  const int x_, axes_, y_;
};

}  // namespace

std::unique_ptr<Operator> make_norm(NodeReader& node) {
  const capi::Node& of = node.node();
  if (!of.domain.empty()) return nullptr;
  if (of.op == "LayerNormalization") return std::make_unique<LayerNorm>(node);
  if (of.op == "ReduceMean" || of.op == "ReduceSum") return std::make_unique<Reduce>(node);
  return nullptr;
}

}  // namespace bcq::native
