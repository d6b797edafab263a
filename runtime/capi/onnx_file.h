// SPDX-License-Identifier: Apache-2.0
// The few fields of an .onnx file that the reader needs, taken from its protocol buffers without their library.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "capi/mapped_file.h"

namespace bcq::capi {

// Element types of TensorProto that exports have.
constexpr int64_t kFloat32 = 1;
constexpr int64_t kInt8 = 3;
constexpr int64_t kInt32 = 6;
constexpr int64_t kInt64 = 7;
constexpr int64_t kFloat16 = 10;
constexpr int64_t kUint32 = 12;

struct Node {
  std::string name;
  std::string op;
  std::string domain;
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
  std::map<std::string, int64_t> numbers;
  std::map<std::string, float> reals;
  std::map<std::string, std::string> texts;
  std::vector<std::string> others;  // attributes of other kinds, by name
};

struct Initializer {
  std::vector<int64_t> dims;
  int64_t type = 0;
  View raw = {nullptr, 0};  // inside the file
  bool external = false;    // the bytes lie in another file instead, at:
  std::string location;
  uint64_t offset = 0;
  uint64_t length = 0;
  bool has_length = false;  // else it ends where its elements do
};

struct GraphInput {
  std::string name;
  int64_t type = 0;
  std::vector<int64_t> dims;  // 0 where the file gives no number
};

struct OnnxGraph {
  std::vector<Node> nodes;
  std::vector<GraphInput> inputs;
  std::vector<std::string> outputs;
  std::map<std::string, Initializer> initializers;
};

// Throws FileError when the bytes are no ONNX model, or say something twice. Subgraphs and model-local functions are not
// looked into. `domain`: keep the nodes of this one alone; empty for all nodes, inputs and outputs.
OnnxGraph read_graph(View file, const std::string& domain);

}  // namespace bcq::capi
