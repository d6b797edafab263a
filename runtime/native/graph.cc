// SPDX-License-Identifier: Apache-2.0
#include "native/graph.h"

#include <algorithm>
#include <cstring>

#include "contract.h"

namespace bcq::native {
namespace {

using capi::Initializer;
using capi::Node;

constexpr Maker kMakers[] = {make_packed, make_binary, make_unary,  make_norm,
                             make_attention, make_rotary, make_shapes, make_pieces};
constexpr size_t kMostNodes = 20000;
constexpr int64_t kMostIntegers = int64_t(1) << 20;  // of a constant
constexpr const char* kLogits = "logits";

std::string label_of(const Node& node) {
  return "node '" + node.name + "' (" + (node.domain.empty() ? "" : node.domain + "::") + node.op + ")";
}

std::unique_ptr<Operator> make(NodeReader& reader) {
  for (const Maker maker : kMakers) {
    if (std::unique_ptr<Operator> made = maker(reader)) return made;
  }
  throw Wrong(
      "this operator is not among those that run without onnxruntime. Export with attention in one operator, or run the "
      "model with onnxruntime");
}

}  // namespace

int axis_of(int64_t axis, int rank) {
  if (axis < -rank || axis >= rank) {
    throw Wrong("axis: got " + std::to_string(axis) + " for " + std::to_string(rank) + " dimensions");
  }
  return int(axis < 0 ? axis + rank : axis);
}

void check_indices(const Tensor& indices, int64_t size) {
  if (indices.type != Type::kInteger) throw Wrong("indices: got floats");
  for (int64_t i = 0; i < indices.count(); ++i) {
    const int64_t index = indices.integers()[i];
    if (index < -size || index >= size) {
      throw Wrong("indices: got " + std::to_string(index) + ", expected -" + std::to_string(size) + " to " +
                  std::to_string(size - 1));
    }
  }
}

int NodeReader::input(size_t index) {
  inputs_.insert(index);
  if (!has(index)) throw Wrong("input " + std::to_string(index) + ": got none, expected one");
  return binder_.read(node_.inputs[index]);
}

int NodeReader::output(size_t index) {
  if (index >= node_.outputs.size()) throw Wrong("output " + std::to_string(index) + ": got none, expected one");
  return binder_.write(node_.outputs[index]);
}

int64_t NodeReader::number(const std::string& name, int64_t otherwise) {
  numbers_.insert(name);
  const auto found = node_.numbers.find(name);
  return found == node_.numbers.end() ? otherwise : found->second;
}

float NodeReader::real(const std::string& name, float otherwise) {
  reals_.insert(name);
  const auto found = node_.reals.find(name);
  return found == node_.reals.end() ? otherwise : found->second;
}

std::string NodeReader::text(const std::string& name, const std::string& otherwise) {
  texts_.insert(name);
  const auto found = node_.texts.find(name);
  return found == node_.texts.end() ? otherwise : found->second;
}

CacheShape NodeReader::past(size_t index) {
  inputs_.insert(index);
  if (!has(index)) throw Wrong("input " + std::to_string(index) + ": got none, expected past keys or values");
  return binder_.past(node_.inputs[index]);
}

BcqMatrix NodeReader::matrix() {
  for (size_t i = 1; i < node_.inputs.size(); ++i) inputs_.insert(i);
  for (const char* name : {"format_version", "bits", "K", "N", "group_size"}) numbers_.insert(name);
  for (const char* name : {"layout", "code_hash"}) texts_.insert(name);
  return binder_.matrix(node_);
}

void NodeReader::finish() const {
  const auto refuse = [](const std::string& name, const char* kind) {
    throw Wrong("attribute '" + name + "': got " + kind + ", which is not supported without onnxruntime");
  };
  const auto check = [&](const auto& given, const std::set<std::string>& asked, const char* kind) {
    for (const auto& [name, value] : given) {
      if (asked.count(name) == 0) refuse(name, kind);
    }
  };
  check(node_.numbers, numbers_, "an integer");
  check(node_.reals, reals_, "a float");
  check(node_.texts, texts_, "a string");
  for (const std::string& name : node_.others) refuse(name, "a list, a tensor or a graph");
  for (size_t i = 0; i < node_.inputs.size(); ++i) {
    if (has(i) && inputs_.count(i) == 0) {
      throw Wrong("input " + std::to_string(i) + " ('" + node_.inputs[i] + "'): it is not supported without onnxruntime");
    }
  }
}

Binder::Binder(capi::TensorFiles& files, Values& values)
    : files_(files), values_(values), onnx_(files.graph("")), packed_(onnx_, files) {}

Graph Binder::bind() {
  Graph graph;
  if (onnx_.nodes.size() > kMostNodes) throw FileError(files_.path() + ": more than 20000 nodes");
  bind_inputs(graph);
  for (const Node& node : onnx_.nodes) {
    try {
      graph.steps.push_back(bind_node(node));
    } catch (const Wrong& wrong) {
      throw FileError(files_.path() + ": " + label_of(node) + ": " + wrong.what());
    }
    ++step_;
  }
  const auto found = numbers_.find(kLogits);
  const bool is_output = std::count(onnx_.outputs.begin(), onnx_.outputs.end(), kLogits) != 0;
  if (found == numbers_.end() || !is_output) throw FileError(files_.path() + ": the graph has no output 'logits'");
  graph.logits = found->second;
  graph.last_reads.assign(writers_.size(), 0);
  for (int i = 0; i < step_; ++i) {
    for (const int value : graph.steps[size_t(i)].inputs) graph.last_reads[size_t(value)] = i;
  }
  graph.last_reads[size_t(graph.logits)] = step_;
  mark_for_cache(graph);
  return graph;
}

void Binder::bind_inputs(Graph& graph) {
  const std::pair<const char*, int*> fed[] = {{"input_ids", &graph.input_ids},
                                              {"attention_mask", &graph.attention_mask},
                                              {"position_ids", &graph.position_ids},
                                              {"logits_to_keep", &graph.logits_to_keep}};
  std::set<std::string> names;
  for (const capi::GraphInput& input : onnx_.inputs) {
    if (!names.insert(input.name).second) throw FileError(files_.path() + ": input '" + input.name + "': got it twice");
    const auto known = std::find_if(std::begin(fed), std::end(fed), [&](auto& f) { return input.name == f.first; });
    if (known != std::end(fed)) {
      if (input.type != capi::kInt64) throw FileError(files_.path() + ": input '" + input.name + "': expected int64");
      *known->second = numbers_[input.name] = add({Type::kInteger, {}, nullptr}, -1);
    } else if (input.dims.size() == 4 && (input.type == capi::kFloat32 || input.type == capi::kInt8)) {
      pasts_[input.name] = {input.dims[1], input.dims[3], input.type == capi::kInt8};
    } else if (onnx_.initializers.count(input.name) == 0) {
      throw FileError(files_.path() + ": input '" + input.name + "' (element type " + std::to_string(input.type) +
                      "): a decoder without onnxruntime has tokens, a mask, positions, and past keys and values of "
                      "float32 or int8");
    }
  }
  if (graph.input_ids < 0) throw FileError(files_.path() + ": the graph has no input 'input_ids'");
}

Step Binder::bind_node(const Node& node) {
  reads_.clear();
  writes_.clear();
  NodeReader reader(node, *this);
  Step step;
  step.op = make(reader);
  reader.finish();
  step.label = label_of(node);
  step.inputs = reads_;
  step.outputs = writes_;
  return step;
}

int Binder::add(const Tensor& tensor, int writer) {
  writers_.push_back(writer);
  return values_.add(tensor);
}

int Binder::read(const std::string& name) {
  auto found = numbers_.find(name);
  if (found == numbers_.end()) {
    const auto tensor = onnx_.initializers.find(name);
    if (tensor == onnx_.initializers.end()) throw Wrong("'" + name + "': nothing before this node computes it");
    found = numbers_.emplace(name, constant(name, tensor->second)).first;
  }
  reads_.push_back(found->second);
  return found->second;
}

int Binder::write(const std::string& name) {
  if (name.empty()) throw Wrong("an output that is needed has no name");
  const int value = add({}, step_);
  if (!numbers_.emplace(name, value).second) throw Wrong("'" + name + "': two nodes compute it, or it is an input");
  writes_.push_back(value);
  return value;
}

int Binder::constant(const std::string& name, const Initializer& initializer) {
  Tensor tensor;
  for (const int64_t size : initializer.dims) tensor.dims.push(size);
  const int64_t count = tensor.dims.count();
  const auto data = [&](size_t element) {
    return const_cast<void*>(files_.data(name, initializer, initializer.type, element));
  };
  if (initializer.type == capi::kFloat32) {
    tensor.data = data(sizeof(float));
    return add(tensor, -1);
  }
  if (initializer.type != capi::kInt64) {
    throw Wrong("constant '" + name + "': element type " + std::to_string(initializer.type) +
                ", expected float32 or int64: run it with onnxruntime");
  }
  if (count > kMostIntegers) throw Wrong("constant '" + name + "': more than a million integers");
  tensor.type = Type::kInteger;
  tensor.data = data(sizeof(int64_t));
  return add(tensor, -1);
}

CacheShape Binder::past(const std::string& name) {
  const auto found = pasts_.find(name);
  if (found == pasts_.end()) throw Wrong("'" + name + "': expected a past of keys or values that no other node has");
  const CacheShape shape = found->second;
  pasts_.erase(found);
  return shape;
}

// Backwards from every node that keeps something of its tokens.
void Binder::mark_for_cache(Graph& graph) const {
  for (size_t i = graph.steps.size(); i-- > 0;) {
    Step& step = graph.steps[i];
    step.for_cache |= step.op->cache() != nullptr;
    if (!step.for_cache) continue;
    for (const int value : step.inputs) {
      const int writer = writers_[size_t(value)];
      if (writer >= 0) graph.steps[size_t(writer)].for_cache = true;
    }
  }
}

}  // namespace bcq::native
