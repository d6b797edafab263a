// SPDX-License-Identifier: Apache-2.0
#include "capi/onnx_file.h"

#include <cstdlib>
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
      case kFixed32: take(4); break;
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

void read_attribute(View bytes, Node& node) {  // AttributeProto: name 1, i 3, s 4
  std::string name;
  Message message(bytes);
  Field number = {}, text = {};
  for (Field field; message.next(field);) {
    if (field.tag == 1) name = field.text();
    if (field.tag == 3) number = field;
    if (field.tag == 4) text = field;
  }
  if (number.tag != 0 && !node.numbers.emplace(name, int64_t(number.number)).second) twice("attribute '" + name + "'");
  if (text.tag != 0 && !node.texts.emplace(name, text.text()).second) twice("attribute '" + name + "'");
}

Node read_node(View bytes) {  // NodeProto: input 1, name 3, attribute 5, domain 7
  Node node;
  Message message(bytes);
  for (Field field; message.next(field);) {
    if (field.tag == 1) node.inputs.push_back(field.text());
    if (field.tag == 3) node.name = field.text();
    if (field.tag == 5) read_attribute(field.bytes, node);
    if (field.tag == 7) node.domain = field.text();
  }
  return node;
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
  if (key == "length") tensor.length = decimal(value);
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
    for (Field part; message.next(part);) {  // GraphProto: node 1, initializer 5
      if (part.tag == 1) {
        Node node = read_node(part.bytes);
        if (node.domain == domain) graph.nodes.push_back(std::move(node));
      }
      if (part.tag == 5) read_tensor(part.bytes, graph);
    }
  }
  if (!found) no_model();
  return graph;
}

}  // namespace bcq::capi
