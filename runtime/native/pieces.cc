// SPDX-License-Identifier: Apache-2.0
// Pieces of values along one axis: joined (Concat), cut apart (Split), cut out (Slice), picked (Gather).
#include <algorithm>
#include <cstring>
#include <vector>

#include "native/operator.h"

namespace bcq::native {
namespace {

// A tensor [..., axis, ...] as outer x axis x inner bytes.
struct Axis {
  Axis(const Tensor& tensor, int axis)
      : outer(tensor.dims.product(0, axis)), size(tensor.dims[axis]),
        inner(size_t(tensor.dims.product(axis + 1, tensor.dims.rank)) * element_bytes(tensor.type)),
        data(static_cast<unsigned char*>(tensor.data)) {}

  unsigned char* at(int64_t outer_index, int64_t index) const { return data + size_t(outer_index * size + index) * inner; }

  int64_t outer, size;
  size_t inner;
  unsigned char* data;
};

// Copies `count` places of an axis for all outer ones.
void copy(const Axis& to, int64_t to_first, const Axis& from, int64_t from_first, int64_t count) {
  const size_t bytes = size_t(count) * from.inner;
  if (bytes == 0) return;
  for (int64_t i = 0; i < from.outer; ++i) std::memcpy(to.at(i, to_first), from.at(i, from_first), bytes);
}

const Tensor& one_integer(const Values& values, int value, const char* what) {
  const Tensor& found = values[value];
  if (found.type != Type::kInteger || found.count() != 1) throw Wrong(std::string(what) + ": expected one integer");
  return found;
}

class Concat : public Operator {
 public:
  explicit Concat(NodeReader& node) : axis_(node.number("axis", 0)), y_(node.output()) {
    for (size_t i = 0; i < node.node().inputs.size(); ++i) inputs_.push_back(node.input(i));
    if (inputs_.empty()) throw Wrong("expected an input");
  }

  void shape(Values& values) const override {
    const Tensor& first = values[inputs_[0]];
    const int axis = axis_of(axis_, first.dims.rank);
    Dims dims = first.dims;
    dims[axis] = 0;
    for (const int input : inputs_) {
      Dims part = values[input].dims;
      if (part.rank != dims.rank || values[input].type != first.type) throw Wrong("inputs: expected all alike");
      dims[axis] += part[axis];
      part[axis] = dims[axis];
      if (!(part == dims)) throw Wrong("inputs: got shapes that do not fit");
    }
    values.make(y_, first.type, dims);
  }
  void run(Values& values, const Work&) const override {
    const int axis = axis_of(axis_, values[y_].dims.rank);
    const Axis to(values[y_], axis);
    int64_t at = 0;
    for (const int input : inputs_) {
      const Axis from(values[input], axis);
      copy(to, at, from, 0, from.size);
      at += from.size;
    }
  }

 private:
  const int64_t axis_;
  const int y_;
  std::vector<int> inputs_;
};

class Split : public Operator {
 public:
  explicit Split(NodeReader& node) : axis_(node.number("axis", 0)), x_(node.input(0)), sizes_(node.input(1)) {
    for (size_t i = 0; i < node.node().outputs.size(); ++i) outputs_.push_back(node.output(i));
  }

  void shape(Values& values) const override {
    const Tensor &x = values[x_], &sizes = values[sizes_];
    const int axis = axis_of(axis_, x.dims.rank);
    if (sizes.type != Type::kInteger || sizes.count() != int64_t(outputs_.size())) {
      throw Wrong("split: expected " + std::to_string(outputs_.size()) + " integers");
    }
    int64_t left = x.dims[axis];
    for (size_t i = 0; i < outputs_.size(); ++i) {
      Dims dims = x.dims;
      dims[axis] = sizes.integers()[i];
      if (dims[axis] < 0 || dims[axis] > left) throw Wrong("split: got sizes that do not fit " + x.dims.text());
      left -= dims[axis];
      values.make(outputs_[i], x.type, dims);
    }
    if (left != 0) throw Wrong("split: got sizes that do not fit " + x.dims.text());
  }
  void run(Values& values, const Work&) const override {
    const int axis = axis_of(axis_, values[x_].dims.rank);
    const Axis from(values[x_], axis);
    int64_t at = 0;
    for (const int output : outputs_) {
      const Axis to(values[output], axis);
      copy(to, 0, from, at, to.size);
      at += to.size;
    }
  }

 private:
  const int64_t axis_;
  const int x_, sizes_;
  std::vector<int> outputs_;
};

class Slice : public Operator {
 public:
  explicit Slice(NodeReader& node)
      : x_(node.input(0)), first_(node.input(1)), end_(node.input(2)), axes_(node.has(3) ? node.input(3) : -1),
        step_(node.has(4) ? node.input(4) : -1), y_(node.output()) {}

  void shape(Values& values) const override {
    Dims dims = values[x_].dims;
    const int axis = this->axis(values);
    if (step_ >= 0 && *one_integer(values, step_, "steps").integers() != 1) throw Wrong("steps: expected 1");
    dims[axis] = std::max<int64_t>(0, place(values, end_, dims[axis]) - place(values, first_, dims[axis]));
    values.make(y_, values[x_].type, dims);
  }
  void run(Values& values, const Work&) const override {
    const Axis from(values[x_], axis(values)), to(values[y_], axis(values));
    copy(to, 0, from, place(values, first_, from.size), to.size);
  }

 private:
  int axis(const Values& values) const {
    return axis_of(axes_ < 0 ? 0 : *one_integer(values, axes_, "axes").integers(), values[x_].dims.rank);
  }
  static int64_t place(const Values& values, int value, int64_t size) {
    const int64_t at = *one_integer(values, value, "starts, ends").integers();
    return std::clamp<int64_t>(at < 0 ? at + size : at, 0, size);
  }

  const int x_, first_, end_, axes_, step_, y_;
};

class Gather : public Operator {
 public:
  explicit Gather(NodeReader& node)
      : axis_(node.number("axis", 0)), x_(node.input(0)), indices_(node.input(1)), y_(node.output()) {}

  void shape(Values& values) const override {
    const Tensor &x = values[x_], &indices = values[indices_];
    const int axis = axis_of(axis_, x.dims.rank);
    check_indices(indices, x.dims[axis]);
    Dims dims;
    for (int i = 0; i < axis; ++i) dims.push(x.dims[i]);
    for (int i = 0; i < indices.dims.rank; ++i) dims.push(indices.dims[i]);
    for (int i = axis + 1; i < x.dims.rank; ++i) dims.push(x.dims[i]);
    values.make(y_, x.type, dims);
  }
  void run(Values& values, const Work&) const override {
    const Axis from(values[x_], axis_of(axis_, values[x_].dims.rank));
    const Tensor& indices = values[indices_];
    unsigned char* to = static_cast<unsigned char*>(values[y_].data);
    for (int64_t i = 0; i < from.outer && from.inner != 0; ++i) {
      for (int64_t j = 0; j < indices.count(); ++j, to += from.inner) {
        const int64_t index = indices.integers()[j];
        std::memcpy(to, from.at(i, index < 0 ? index + from.size : index), from.inner);
      }
    }
  }

 private:
  const int64_t axis_;
  const int x_, indices_, y_;
};

}  // namespace

std::unique_ptr<Operator> make_pieces(NodeReader& node) {
  const capi::Node& of = node.node();
  if (!of.domain.empty()) return nullptr;
  if (of.op == "Concat") return std::make_unique<Concat>(node);
  if (of.op == "Split") return std::make_unique<Split>(node);
  if (of.op == "Slice") return std::make_unique<Slice>(node);
  if (of.op == "Gather") return std::make_unique<Gather>(node);
  return nullptr;
}

}  // namespace bcq::native
