// SPDX-License-Identifier: Apache-2.0
// Functions of one value, element by element.
#include <cmath>

#include "native/math.h"
#include "native/operator.h"

namespace bcq::native {
namespace {

using Row = void (*)(float* __restrict y, const float* __restrict x, int64_t n);

template <float (*F)(float)>
void each(float* __restrict y, const float* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = F(x[i]);
}

float negative(float x) { return -x; }
float root(float x) { return std::sqrt(x); }
float cosine(float x) { return std::cos(x); }
float sine(float x) { return std::sin(x); }
float positive_part(float x) { return x < 0 ? 0 : x; }  // of a NaN itself

struct Named {
  const char* name;
  Row row;
};

constexpr Named kFunctions[] = {
    {"Cos", each<cosine>},   {"Neg", each<negative>}, {"Relu", each<positive_part>},
    {"Sigmoid", each<logistic>}, {"Sin", each<sine>},     {"Sqrt", each<root>},
    {"Tanh", each<hyperbolic_tangent>},
};

class Unary : public Operator {
 public:
  Unary(NodeReader& node, Row row) : row_(row), is_neg_(node.node().op == "Neg"), x_(node.input(0)), y_(node.output()) {}

  void shape(Values& values) const override {
    const Tensor& x = values[x_];
    if (x.type == Type::kInteger && !is_neg_) throw Wrong("it is not supported for integers");
    values.make(y_, x.type, Dims(x.dims));
  }

  void run(Values& values, const Work& work) const override {
    const Tensor &y = values[y_], &x = values[x_];
    if (x.type == Type::kInteger) {
      for (int64_t i = 0; i < x.count(); ++i) y.integers()[i] = int64_t(0 - uint64_t(x.integers()[i]));
      return;
    }
    const int64_t n = x.last();
    work.team.share_rows(x.rows(), n, [&](int64_t begin, int64_t end, size_t) {
      row_(y.floats() + begin * n, x.floats() + begin * n, (end - begin) * n);
    });
  }

 private:
  const Row row_;
  const bool is_neg_;
  const int x_, y_;
};

// Integers stay as they are, whatever their width; they may become floats, and floats nothing else.
class Cast : public Operator {
 public:
  explicit Cast(NodeReader& node) : to_(node.number("to", 0)), x_(node.input(0)), y_(node.output()) {
    node.number("saturate", 1);
    if (to_ != capi::kFloat32 && to_ != capi::kInt32 && to_ != capi::kInt64) {
      throw Wrong("to: got element type " + std::to_string(to_) +
                  ", expected float32, int32 or int64: models of other types run with onnxruntime");
    }
  }

  void shape(Values& values) const override {
    const Tensor& x = values[x_];
    const Type type = to_ == capi::kFloat32 ? Type::kFloat : Type::kInteger;
    if (x.type == Type::kFloat && type == Type::kInteger) throw Wrong("to: got an integer for a float");
    if (x.type == type) values.view(y_, x_, Dims(x.dims));
    else values.make(y_, type, Dims(x.dims));
  }

  void run(Values& values, const Work&) const override {
    const Tensor &y = values[y_], &x = values[x_];
    if (x.type == y.type) return;
    for (int64_t i = 0; i < x.count(); ++i) y.floats()[i] = float(x.integers()[i]);
  }

 private:
  const int64_t to_;
  const int x_, y_;
};

}  // namespace

std::unique_ptr<Operator> make_unary(NodeReader& node) {
  const capi::Node& of = node.node();
  if (!of.domain.empty()) return nullptr;
  if (of.op == "Cast") return std::make_unique<Cast>(node);
  for (const Named& function : kFunctions) {
    if (of.op == function.name) return std::make_unique<Unary>(node, function.row);
  }
  return nullptr;
}

}  // namespace bcq::native
