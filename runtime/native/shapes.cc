// SPDX-License-Identifier: Apache-2.0
// Sizes as values, values in another shape, and counting. A value in another shape is the same memory.
#include <algorithm>

#include "native/operator.h"

namespace bcq::native {
namespace {

constexpr int64_t kMostCounted = int64_t(1) << 24;

const Tensor& integers(const Values& values, int value) {
  if (values[value].type != Type::kInteger) throw Wrong("sizes: got floats, expected integers");
  return values[value];
}

class Shape : public Operator {
 public:
  explicit Shape(NodeReader& node)
      : start_(node.number("start", 0)), end_(node.number("end", kMostRank)), x_(node.input(0)), y_(node.output()) {}

  void shape(Values& values) const override {
    Dims dims;
    dims.push(std::max<int64_t>(0, last(values) - first(values)));
    values.make(y_, Type::kInteger, dims);
  }
  void run(Values& values, const Work&) const override {
    const Dims& from = values[x_].dims;
    for (int64_t i = first(values); i < last(values); ++i) values[y_].integers()[i - first(values)] = from[int(i)];
  }

 private:
  static int64_t place(int64_t at, int64_t rank) { return std::clamp<int64_t>(at < 0 ? at + rank : at, 0, rank); }
  int64_t first(const Values& values) const { return place(start_, values[x_].dims.rank); }
  int64_t last(const Values& values) const { return place(end_, values[x_].dims.rank); }

  const int64_t start_, end_;
  const int x_, y_;
};

class Squeeze : public Operator {
 public:
  explicit Squeeze(NodeReader& node)
      : x_(node.input(0)), axes_(node.has(1) ? node.input(1) : -1), y_(node.output()) {}

  void shape(Values& values) const override {
    const Dims& from = values[x_].dims;
    bool drops[kMostRank] = {};
    for (int i = 0; axes_ < 0 && i < from.rank; ++i) drops[i] = from[i] == 1;
    if (axes_ >= 0) {
      const Tensor& axes = integers(values, axes_);
      for (int64_t i = 0; i < axes.count(); ++i) drops[axis_of(axes.integers()[i], from.rank)] = true;
    }
    Dims dims;
    for (int i = 0; i < from.rank; ++i) {
      if (!drops[i]) dims.push(from[i]);
    }
    values.view(y_, x_, dims);
  }

 private:
  const int x_, axes_, y_;
};

class Unsqueeze : public Operator {
 public:
  explicit Unsqueeze(NodeReader& node) : x_(node.input(0)), axes_(node.input(1)), y_(node.output()) {}

  void shape(Values& values) const override {
    const Tensor &x = values[x_], &axes = integers(values, axes_);
    const int64_t rank = x.dims.rank + axes.count();
    if (rank > kMostRank) throw Wrong("a value has more than 6 dimensions");
    bool fresh[kMostRank] = {};
    for (int64_t i = 0; i < axes.count(); ++i) {
      bool& is_fresh = fresh[axis_of(axes.integers()[i], int(rank))];
      if (is_fresh) throw Wrong("axes: got one twice");
      is_fresh = true;
    }
    Dims dims;
    for (int i = 0, next = 0; i < rank; ++i) dims.push(fresh[i] ? 1 : x.dims[next++]);
    values.view(y_, x_, dims);
  }

 private:
  const int x_, axes_, y_;
};

class Reshape : public Operator {
 public:
  explicit Reshape(NodeReader& node)
      : allows_zero_(node.number("allowzero", 0) != 0), x_(node.input(0)), shape_(node.input(1)), y_(node.output()) {}

  void shape(Values& values) const override {
    const Tensor &x = values[x_], &asked = integers(values, shape_);
    Dims dims;
    int open = -1;
    for (int64_t i = 0; i < asked.count(); ++i) {
      int64_t size = asked.integers()[i];
      if (size == 0 && !allows_zero_ && i < x.dims.rank) size = x.dims[int(i)];
      if (size == -1 && open < 0) open = int(i), size = 1;
      dims.push(size);
    }
    const int64_t known = dims.count();
    if (open >= 0 && known > 0) dims[open] = x.count() / known;
    values.view(y_, x_, dims);
  }

 private:
  const bool allows_zero_;
  const int x_, shape_, y_;
};

class Range : public Operator {
 public:
  explicit Range(NodeReader& node)
      : start_(node.input(0)), limit_(node.input(1)), step_(node.input(2)), y_(node.output()) {}

  void shape(Values& values) const override {
    for (const int value : {start_, limit_, step_}) {
      if (integers(values, value).count() != 1) throw Wrong("expected one integer each");
    }
    const int64_t start = *values[start_].integers(), limit = *values[limit_].integers();
    const bool near = start >= -kMostCounted && limit <= kMostCounted;
    if (*values[step_].integers() != 1 || !near) throw Wrong("expected steps of 1, and a few million at most");
    Dims dims;
    dims.push(std::max<int64_t>(0, limit < start ? 0 : limit - start));
    values.make(y_, Type::kInteger, dims);
  }
  void run(Values& values, const Work&) const override {
    const Tensor& y = values[y_];
    for (int64_t i = 0; i < y.count(); ++i) y.integers()[i] = *values[start_].integers() + i;
  }

 private:
  const int start_, limit_, step_, y_;
};

}  // namespace

std::unique_ptr<Operator> make_shapes(NodeReader& node) {
  const capi::Node& of = node.node();
  if (!of.domain.empty()) return nullptr;
  if (of.op == "Shape") return std::make_unique<Shape>(node);
  if (of.op == "Squeeze") return std::make_unique<Squeeze>(node);
  if (of.op == "Unsqueeze") return std::make_unique<Unsqueeze>(node);
  if (of.op == "Reshape") return std::make_unique<Reshape>(node);
  if (of.op == "Range") return std::make_unique<Range>(node);
  return nullptr;
}

}  // namespace bcq::native
