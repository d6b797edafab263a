// SPDX-License-Identifier: Apache-2.0
// Sums, differences, products, quotients and powers, element by element, with ONNX's broadcasting.
#include <algorithm>

#include "native/operator.h"

namespace bcq::native {
namespace {

// An element of the result for elements of both operands.
struct Add {
  static float of(float a, float b) { return a + b; }
};
struct Sub {
  static float of(float a, float b) { return a - b; }
};
struct Mul {
  static float of(float a, float b) { return a * b; }
};
struct Div {
  static float of(float a, float b) { return a / b; }
};
struct Square {
  static float of(float a, float) { return a * a; }
};
struct Cube {
  static float of(float a, float) { return a * a * a; }
};

// n elements; an operand whose stride is 0 has one for all of them.
template <class F>
void row(float* __restrict y, const float* __restrict a, bool many_a, const float* __restrict b, bool many_b, int64_t n) {
  if (many_a && many_b) {
    for (int64_t i = 0; i < n; ++i) y[i] = F::of(a[i], b[i]);
  } else if (many_a) {
    const float one = *b;
    for (int64_t i = 0; i < n; ++i) y[i] = F::of(a[i], one);
  } else {
    const float one = *a;
    for (int64_t i = 0; i < n; ++i) y[i] = F::of(one, many_b ? b[i] : *b);
  }
}
using Row = decltype(&row<Add>);

// Integers wrap around.
int64_t of_integers(char op, int64_t a, int64_t b) {
  const uint64_t x = uint64_t(a), y = uint64_t(b);
  return int64_t(op == 'A' ? x + y : op == 'S' ? x - y : x * y);
}

// Where the rows of an operand begin, for rows of the result.
class Rows {
 public:
  Rows(const Tensor& operand, const Dims& result) : rank_(result.rank) {
    int64_t stride = 1;
    for (int i = rank_ - 1, j = operand.dims.rank - 1; i >= 0; --i, --j) {
      const int64_t size = j < 0 ? 1 : operand.dims[j];
      sizes_[i] = result[i];
      strides_[i] = size == 1 ? 0 : stride;
      stride *= size;
    }
  }
  int64_t begin(int64_t index) const {
    int64_t at = 0;
    for (int i = rank_ - 2; i >= 0; --i) {
      at += index % sizes_[i] * strides_[i];
      index /= sizes_[i];
    }
    return at;
  }
  bool many() const { return rank_ != 0 && strides_[rank_ - 1] != 0; }

 private:
  int rank_;
  int64_t sizes_[kMostRank], strides_[kMostRank];
};

void rows(Row row, const Tensor& y, const Tensor& a, const Tensor& b, const Team& team) {
  const Rows at_a(a, y.dims), at_b(b, y.dims);
  const int64_t n = y.last();
  if (n == 0) return;
  team.share_rows(y.rows(), n, [&](int64_t begin, int64_t end, size_t) {
    for (int64_t i = begin; i < end; ++i) {
      row(y.floats() + i * n, a.floats() + at_a.begin(i), at_a.many(), b.floats() + at_b.begin(i), at_b.many(), n);
    }
  });
}

void integer_rows(char op, const Tensor& y, const Tensor& a, const Tensor& b) {
  const Rows at_a(a, y.dims), at_b(b, y.dims);
  const int64_t n = y.last();
  for (int64_t i = 0; i < y.count(); ++i) {
    const int64_t *from_a = a.integers() + at_a.begin(i / n), *from_b = b.integers() + at_b.begin(i / n);
    y.integers()[i] = of_integers(op, from_a[at_a.many() ? i % n : 0], from_b[at_b.many() ? i % n : 0]);
  }
}

class Binary : public Operator {
 public:
  explicit Binary(NodeReader& node)
      : op_(node.node().op[0]), a_(node.input(0)), b_(node.input(1)), y_(node.output()) {}

  void shape(Values& values) const override {
    const Tensor &a = values[a_], &b = values[b_];
    if (a.type != b.type) throw Wrong("operands: got a float and an integer, expected two alike");
    if (a.type == Type::kInteger && (op_ == 'P' || op_ == 'D')) throw Wrong("it is not supported for integers");
    if (op_ == 'P' && exponent_of(b) != 2 && exponent_of(b) != 3) {
      throw Wrong("exponent: expected the constant 2 or 3 without onnxruntime");
    }
    Dims dims;
    const int rank = std::max(a.dims.rank, b.dims.rank);
    for (int i = 0; i < rank; ++i) {
      const int at_a = i - rank + a.dims.rank, at_b = i - rank + b.dims.rank;
      const int64_t n = at_a < 0 ? 1 : a.dims[at_a], m = at_b < 0 ? 1 : b.dims[at_b];
      if (n != m && n != 1 && m != 1) {
        throw Wrong("operands: got shapes " + a.dims.text() + " and " + b.dims.text() + " that do not fit");
      }
      dims.push(n == 1 ? m : n);
    }
    values.make(y_, a.type, dims);
  }

  void run(Values& values, const Work& work) const override {
    const Tensor &y = values[y_], &a = values[a_], &b = values[b_];
    if (y.type == Type::kInteger) integer_rows(op_, y, a, b);
    else rows(row_of(b), y, a, b, work.team);
  }

 private:
  Row row_of(const Tensor& b) const {
    switch (op_) {
      case 'A': return row<Add>;
      case 'S': return row<Sub>;
      case 'M': return row<Mul>;
      case 'D': return row<Div>;
      default: return exponent_of(b) == 2 ? row<Square> : row<Cube>;
    }
  }
  static float exponent_of(const Tensor& b) { return b.data != nullptr && b.count() == 1 ? *b.floats() : 0; }

  const char op_;  // the first letter of its name
  const int a_, b_, y_;
};

}  // namespace

std::unique_ptr<Operator> make_binary(NodeReader& node) {
  const capi::Node& of = node.node();
  for (const char* name : {"Add", "Sub", "Mul", "Div", "Pow"}) {
    if (of.domain.empty() && of.op == name) return std::make_unique<Binary>(node);
  }
  return nullptr;
}

}  // namespace bcq::native
