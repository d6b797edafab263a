// SPDX-License-Identifier: Apache-2.0
// The packed matrix of a node: the node says what it is, initializers where it lies; the operators' validator checks both.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <tuple>

#include "capi/bcq.h"
#include "capi/onnx_file.h"
#include "capi/tensor_files.h"

namespace bcq::capi {

class PackedReader {
 public:
  // Both must live as long.
  PackedReader(const OnnxGraph& graph, TensorFiles& files) : graph_(graph), files_(files) {}

  // Throws Wrong, or FileError for a data file that cannot be mapped.
  BcqMatrix read(const Node& node);

  // The name of the matrix of a node: that of its codes, without ".codes". Throws Wrong for another number of inputs.
  static std::string name(const Node& node);

 private:
  const OnnxGraph& graph_;
  TensorFiles& files_;
  // Many matrices may have the same codes: a small file must not take hours.
  std::set<std::tuple<const uint32_t*, int64_t, int64_t, int32_t>> checked_;
};

}  // namespace bcq::capi
