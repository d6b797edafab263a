// SPDX-License-Identifier: Apache-2.0
// A graph that is ready to run: its nodes in the order of the file, bound to numbered values.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "capi/packed.h"
#include "native/operator.h"

namespace bcq::native {

struct Step {
  std::unique_ptr<Operator> op;
  std::string label;  // "node 'node_Add_0' (Add)"
  std::vector<int> inputs, outputs;
  bool for_cache = false;  // keys and values depend on it; the others are needed for logits alone
};

struct Graph {
  std::vector<Step> steps;
  std::vector<int> last_reads;  // by value: the last step that reads it; of logits: behind all
  // Values that each run is fed; -1 for what the graph does not ask for.
  int input_ids = -1, attention_mask = -1, position_ids = -1, logits_to_keep = -1;
  int logits = -1;
};

// Reads the nodes of a file into a graph, and its constants into values.
class Binder {
 public:
  Binder(capi::TensorFiles& files, Values& values);

  // Throws FileError that names the node which cannot run here, and why.
  Graph bind();

  int read(const std::string& name);
  int write(const std::string& name);
  CacheShape past(const std::string& name);
  BcqMatrix matrix(const capi::Node& node) { return packed_.read(node); }

 private:
  int add(const Tensor& tensor, int writer);
  int constant(const std::string& name, const capi::Initializer& tensor);
  void bind_inputs(Graph& graph);
  Step bind_node(const capi::Node& node);
  void mark_for_cache(Graph& graph) const;

  capi::TensorFiles& files_;
  Values& values_;
  capi::OnnxGraph onnx_;
  capi::PackedReader packed_;
  std::map<std::string, int> numbers_;
  std::map<std::string, CacheShape> pasts_;  // that nobody has taken yet
  std::vector<int> reads_, writes_;          // of the node that is being bound
  std::vector<int> writers_;                 // by value: its step, -1 for none
  int step_ = 0;
};

}  // namespace bcq::native
