// SPDX-License-Identifier: Apache-2.0
// The values of a graph by number, and the arena that those of one run share: planned once for the largest run, by how
// long each value lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "native/memory.h"
#include "native/tensor.h"

namespace bcq::native {

class Values {
 public:
  // Adds a value that nodes will compute, a constant, or what a run is fed; returns its number.
  int add(const Tensor& tensor = {});

  const Tensor& operator[](int value) const { return tensors_[size_t(value)]; }
  // For what a run is fed.
  Tensor& fed(int value) { return tensors_[size_t(value)]; }

  // The output of a node, with memory for it. Throws Wrong where it would be larger than planned.
  Tensor& make(int value, Type type, const Dims& dims);
  // The output of a node that has the elements of `of` in another shape.
  void view(int value, int of, const Dims& dims);

  // A planning run: begin, for each node set `now` and make its outputs, then finish with the last place that each value
  // is read at. Integers have memory in it, floats have none.
  void begin_plan();
  void now(int node) { now_ = node; }
  void finish_plan(const std::vector<int>& last_reads);

  size_t arena_bytes() const { return arena_.bytes(); }

 private:
  struct Place {
    int storage = -1;  // the value whose memory it has, itself unless it is a view
    int born = 0;
    size_t bytes = 0, offset = 0;
  };

  Tensor& make_planned(Tensor& tensor, Place& place, size_t bytes);

  std::vector<Tensor> tensors_;
  std::vector<Place> places_;
  std::vector<std::unique_ptr<int64_t[]>> integers_;  // while memory is planned
  size_t integer_bytes_ = 0;
  Memory arena_;
  int now_ = 0;
  bool planning_ = false;
};

}  // namespace bcq::native
