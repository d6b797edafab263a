// SPDX-License-Identifier: Apache-2.0
// A node of the graph that can run, and how one is read from the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <set>
#include <string>

#include "capi/bcq.h"
#include "capi/onnx_file.h"
#include "native/team.h"
#include "native/values.h"

namespace bcq::native {

// One run of the graph: `rows` new tokens after `past` ones.
struct Work {
  const Team& team;
  unsigned char* scratch;
  int64_t past;
  int64_t rows;
};

// Keys and values of one layer: [heads, room, width], float32 or int8.
struct CacheShape {
  int64_t heads = 0, width = 0;
  bool is_int8 = false;

  size_t bytes(int64_t room) const { return size_t(heads * room * width) * (is_int8 ? 1 : sizeof(float)); }
};

class Operator {
 public:
  virtual ~Operator() = default;
  // Makes the outputs; their shapes follow from those of the inputs and from integers, which are computed by then.
  virtual void shape(Values& values) const = 0;
  // Computes the outputs. Whoever only looks at its input in another way has nothing to do.
  virtual void run(Values&, const Work&) const {}
  // Bytes of scratch after shape(), also for fewer rows.
  virtual size_t scratch_bytes(const Values&, size_t /*threads*/) const { return 0; }
  // For attention: what it keeps of each token, and where it may.
  virtual const CacheShape* cache() const { return nullptr; }
  virtual void keep_in(unsigned char* /*keys*/, unsigned char* /*values*/, int64_t /*room*/) {}
};

class Binder;

// Gives the parts of a node by name. finish() refuses what nobody has asked for, so that nothing is ignored.
class NodeReader {
 public:
  NodeReader(const capi::Node& node, Binder& binder) : node_(node), binder_(binder) {}

  const capi::Node& node() const { return node_; }

  bool has(size_t input) const { return input < node_.inputs.size() && !node_.inputs[input].empty(); }
  int input(size_t index);
  int output(size_t index = 0);
  int64_t number(const std::string& name, int64_t otherwise);
  float real(const std::string& name, float otherwise);
  std::string text(const std::string& name, const std::string& otherwise);
  // A past of the graph; nothing else may read it.
  CacheShape past(size_t index);
  BcqMatrix matrix();
  void finish() const;

 private:
  const capi::Node& node_;
  Binder& binder_;
  std::set<size_t> inputs_;
  std::set<std::string> numbers_, reals_, texts_;  // attributes that were asked for
};

// One for each file of operators; NULL where the node is of none of its kinds.
using Maker = std::unique_ptr<Operator> (*)(NodeReader& node);
std::unique_ptr<Operator> make_attention(NodeReader& node);
std::unique_ptr<Operator> make_binary(NodeReader& node);
std::unique_ptr<Operator> make_unary(NodeReader& node);
std::unique_ptr<Operator> make_norm(NodeReader& node);
std::unique_ptr<Operator> make_packed(NodeReader& node);
std::unique_ptr<Operator> make_rotary(NodeReader& node);
std::unique_ptr<Operator> make_pieces(NodeReader& node);
std::unique_ptr<Operator> make_shapes(NodeReader& node);

// An axis that may count from the end, as 0 .. rank - 1. Throws Wrong for another.
int axis_of(int64_t axis, int rank);
// Throws Wrong unless `indices` are integers from -size to size - 1.
void check_indices(const Tensor& indices, int64_t size);

}  // namespace bcq::native
