// SPDX-License-Identifier: Apache-2.0
#include "capi/onnx_file.h"

#include <cstdlib>
#include <cstring>
#include <utility>

namespace bcq::capi {
namespace {

constexpr unsigned kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;
constexpr int kLongestVarint = 10;

[[noreturn]] void twice(const std::string& what) { throw FileError(what + ": got it twice, expected it once"); }

[[noreturn]] void no_model() { throw FileError("this is no ONNX model, or it is cut short: copy or export it again"); }

// One field of a message: a number, or a piece of bytes.
struct Field {
  uint64_t tag;
  uint64_t number;
  View bytes;

  std::string text() const { return {reinterpret_cast<const char*>(bytes.data), bytes.size}; }
};

// Goes through the fields of one message.
class Message {
 public:
  explicit Message(View bytes) : at_(bytes.data), end_(bytes.data + bytes.size) {}

  bool done() const { return at_ == end_; }

  uint64_t varint() {
    uint64_t value = 0;
    for (int i = 0; i < kLongestVarint; ++i) {
      if (done()) no_model();
      const uint8_t byte = *at_++;
      value |= uint64_t(byte & 0x7f) << 7 * i;
      if (byte < 0x80) return value;
    }
    no_model();
  }

  bool next(Field& field) {
    if (done()) return false;
    const uint64_t key = varint();
    field = {key >> 3, 0, {nullptr, 0}};
    switch (key & 7) {
      case kVarint: field.number = varint(); break;
      case kFixed64: take(8); break;
      case kBytes: field.bytes = take(varint()); break;
      case kFixed32: field.bytes = take(4); break;
      default: no_model();
    }
    return true;
  }

 private:
  View take(uint64_t size) {
    if (size > uint64_t(end_ - at_)) no_model();
    const View taken = {at_, size_t(size)};
    at_ += size;
    return taken;
  }

  const uint8_t* at_;
  const uint8_t* end_;
};

float real_of(const Field& field) {  // a fixed32
  if (field.bytes.size != sizeof(float)) no_model();
  float value;
  std::memcpy(&value, field.bytes.data, sizeof value);
  return value;
}

// AttributeProto: name 1, f 2, i 3, s 4, type 20 (1 FLOAT, 2 INT, 3 STRING). Some writers leave out a value that is 0.
void read_attribute(View bytes, Node& node) {
  constexpr uint64_t kName = 1, kReal = 2, kNumber = 3, kText = 4, kType = 20, kDoc = 13;
  std::string name;
  Message message(bytes);
  Field real = {}, number = {}, text = {};
  uint64_t type = 0;
  bool other = false;
  for (Field field; message.next(field);) {
    if (field.tag == kName) name = field.text();
    else if (field.tag == kReal) real = field;
    else if (field.tag == kNumber) number = field;
    else if (field.tag == kText) text = field;
    else if (field.tag == kType) type = field.number;
    else if (field.tag != kDoc) other = true;
  }
  const bool is_real = real.tag != 0 || type == 1, is_number = number.tag != 0 || type == 2;
  const bool is_text = text.tag != 0 || type == 3;
  bool first = true;
  if (is_real) first &= node.reals.emplace(name, real.tag == 0 ? 0.0f : real_of(real)).second;
  if (is_number) first &= node.numbers.emplace(name, int64_t(number.number)).second;
  if (is_text) first &= node.texts.emplace(name, text.text()).second;
  if (!first) twice("attribute '" + name + "'");
  if (other || !(is_real || is_number || is_text)) node.others.push_back(name);
}

Node read_node(View bytes) {  // NodeProto: input 1, output 2, name 3, op_type 4, attribute 5, domain 7
  Node node;
  Message message(bytes);
  for (Field field; message.next(field);) {
    if (field.tag == 1) node.inputs.push_back(field.text());
    if (field.tag == 2) node.outputs.push_back(field.text());
    if (field.tag == 3) node.name = field.text();
    if (field.tag == 4) node.op = field.text();
    if (field.tag == 5) read_attribute(field.bytes, node);
    if (field.tag == 7) node.domain = field.text();
  }
  return node;
}

// Calls found(bytes) for each field `tag` of a message.
template <class Found>
void each(View bytes, uint64_t tag, Found found) {
  Message message(bytes);
  for (Field field; message.next(field);) {
    if (field.tag == tag) found(field);
  }
}

void read_tensor_type(View bytes, GraphInput& input) {  // TypeProto.Tensor: elem_type 1, shape 2
  each(bytes, 1, [&](const Field& type) { input.type = int64_t(type.number); });
  each(bytes, 2, [&](const Field& shape) {
    each(shape.bytes, 1, [&](const Field& dim) {  // TensorShapeProto: dim 1; Dimension: dim_value 1, dim_param 2
      input.dims.push_back(0);
      each(dim.bytes, 1, [&](const Field& value) { input.dims.back() = int64_t(value.number); });
    });
  });
}

GraphInput read_input(View bytes) {  // ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1
  GraphInput input;
  each(bytes, 1, [&](const Field& name) { input.name = name.text(); });
  each(bytes, 2, [&](const Field& type) {
    each(type.bytes, 1, [&](const Field& tensor) { read_tensor_type(tensor.bytes, input); });
  });
  return input;
}

uint64_t decimal(const std::string& text) {
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) no_model();
  return std::strtoull(text.c_str(), nullptr, 10);
}

void read_place(View bytes, Initializer& tensor) {  // StringStringEntryProto: key 1, value 2
  std::string key, value;
  Message message(bytes);
  for (Field field; message.next(field);) {
    if (field.tag == 1) key = field.text();
    if (field.tag == 2) value = field.text();
  }
  if (key == "location") tensor.location = value;
  if (key == "offset") tensor.offset = decimal(value);
  if (key == "length") tensor.length = decimal(value), tensor.has_length = true;
}

void read_dims(const Field& field, Initializer& tensor) {  // packed, or one by one
  if (field.bytes.data == nullptr) tensor.dims.push_back(int64_t(field.number));
  for (Message packed(field.bytes); !packed.done();) tensor.dims.push_back(int64_t(packed.varint()));
}

// TensorProto: dims 1, data_type 2, name 8, raw_data 9, external_data 13, data_location 14 (1: external)
void read_tensor(View bytes, OnnxGraph& graph) {
  Initializer tensor;
  std::string name;
  Message message(bytes);
  for (Field field; message.next(field);) {
    if (field.tag == 1) read_dims(field, tensor);
    if (field.tag == 2) tensor.type = int64_t(field.number);
    if (field.tag == 8) name = field.text();
    if (field.tag == 9) tensor.raw = field.bytes;
    if (field.tag == 13) read_place(field.bytes, tensor);
    if (field.tag == 14) tensor.external = field.number == 1;
  }
  if (!graph.initializers.emplace(name, tensor).second) twice("initializer '" + name + "'");
}

}  // namespace

OnnxGraph read_graph(View file, const std::string& domain) {
  OnnxGraph graph;
  Message model(file);
  bool found = false;
  for (Field field; model.next(field);) {
    if (field.tag != 7) continue;  // ModelProto: graph 7
    found = true;
    Message message(field.bytes);
    for (Field part; message.next(part);) {  // GraphProto: node 1, initializer 5, input 11, output 12
      if (part.tag == 1) {
        Node node = read_node(part.bytes);
        if (domain.empty() || node.domain == domain) graph.nodes.push_back(std::move(node));
      }
      if (part.tag == 5) read_tensor(part.bytes, graph);
      if (part.tag == 11 && domain.empty()) graph.inputs.push_back(read_input(part.bytes));
      if (part.tag == 12 && domain.empty()) graph.outputs.push_back(read_input(part.bytes).name);
    }
  }
  if (!found) no_model();
  return graph;
}

}  // namespace bcq::capi
