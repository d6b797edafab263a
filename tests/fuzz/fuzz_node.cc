// SPDX-License-Identifier: Apache-2.0
// Fuzzes everything between ONNX Runtime and a kernel: attributes, types, shapes, what is constant, what fails. A node
// is healthy and is then changed a few times by the bytes. It must be refused with a message that names it, or run, and
// twice with the same result; nothing may be left behind. AddressSanitizer watches every tensor's exact size.
#include <cctype>
#include <vector>

#include "bytes.h"
#include "fake_node.h"

namespace {

using bcq::ort::ONNXTensorElementDataType;

constexpr const char* kNames[] = {"format_version", "layout",     "bits",           "K",
                                  "N",              "group_size", "accuracy_level", "code_hash"};
constexpr int64_t kOdd[] = {0, 1, -1, 2, 8, 9, 15, 16, 31, 32, 33, 64, 1 << 16, INT32_MAX, int64_t(INT32_MAX) + 1,
                            int64_t(1) << 32, int64_t(1) << 62, INT64_MAX, INT64_MIN};
constexpr size_t kMostBytes = size_t(1) << 20;

int64_t odd_number(fuzz::Bytes& bytes) {
  return bytes.flag() ? kOdd[bytes.number<uint8_t>() % (sizeof kOdd / sizeof *kOdd)] : bytes.number<int64_t>();
}

fake::Sizes healthy_sizes(fuzz::Bytes& bytes) {
  fake::Sizes s;
  s.bits = bytes.between(1, 8);
  s.K = bytes.between(1, 300);
  s.N = bytes.between(1, 70);
  s.M = bytes.between(0, 5);
  s.group_size = bytes.flag() ? s.K : 32 * bytes.between(1, 12);
  s.offset = bytes.flag();
  s.gather = bytes.flag();
  s.half = bytes.flag();
  return s;
}

void change_attribute(fake::Node& node, fuzz::Bytes& bytes) {
  const std::string name = kNames[bytes.number<uint8_t>() % 8];
  bcq::ort::OrtOpAttr& attribute = node.info.attributes[name];
  switch (bytes.number<uint8_t>() % 4) {
    case 0: attribute.number = odd_number(bytes); break;
    case 1: attribute.text = bytes.text(80); break;
    case 2: attribute.is_int = !attribute.is_int; break;
    default: node.info.attributes.erase(name);
  }
}

std::vector<int64_t> odd_shape(const std::vector<int64_t>& dims, fuzz::Bytes& bytes) {
  std::vector<int64_t> changed = dims;
  const uint8_t how = bytes.number<uint8_t>() % 4;
  if (how == 0) changed.resize(bytes.number<uint8_t>() % 20, 1);
  else if (how == 1) changed.push_back(odd_number(bytes));
  else if (!changed.empty()) changed[bytes.number<uint8_t>() % changed.size()] = odd_number(bytes);
  return changed;
}

void change_tensor(fake::Node& node, fuzz::Bytes& bytes) {
  const size_t which = bytes.number<uint8_t>() % node.inputs.size();
  bcq::ort::OrtValue& value = *node.inputs[which];
  switch (bytes.number<uint8_t>() % 6) {
    case 0: fake::resize(value, value.shape.type, odd_shape(value.shape.dims, bytes), kMostBytes); break;
    case 1:
      fake::resize(value, ONNXTensorElementDataType(bytes.number<uint8_t>() % 24), value.shape.dims, kMostBytes);
      break;
    case 2: node.fed[which] = !node.fed[which]; break;
    case 3: node.inputs.pop_back(); break;
    case 4: value.data += bytes.flag(); break;  // an odd address; only looked at, since it is refused
    default: node.info.declared[0].dims = odd_shape(node.info.declared[0].dims, bytes);
  }
}

// Changes bytes inside tensors; indices may then lie outside the matrix, and padding may be set.
void change_bytes(fake::Node& node, fuzz::Bytes& bytes) {
  bcq::ort::OrtValue& value = *node.inputs[bytes.number<uint8_t>() % node.inputs.size()];
  size_t size = fake::element_bytes(value.shape.type);
  for (const int64_t dim : value.shape.dims) size *= size_t(dim);
  if (size != 0) value.bytes[bytes.number<uint32_t>() % size] = bytes.number<uint8_t>();
}

void change(fake::Node& node, fuzz::Bytes& bytes) {
  switch (bytes.number<uint8_t>() % 5) {
    case 0: return change_attribute(node, bytes);
    case 1: return change_tensor(node, bytes);
    case 2: return change_bytes(node, bytes);
    case 3:
      node.info.name = bytes.text(255);
      node.info.output = bytes.text(20);
      return;
    default: fake::fail_in = bytes.number<uint8_t>() % 80;
  }
}

// Valid UTF-8 without control characters, as far as a message goes.
bool is_clean(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    const size_t length = c < 0x80 ? 1 : (c >> 5) == 6 ? 2 : (c >> 4) == 14 ? 3 : (c >> 3) == 30 ? 4 : 0;
    if (length == 0 || c < 0x20 || c == 0x7f || i + length > text.size()) return false;
    for (size_t j = 1; j < length; ++j) {
      if ((static_cast<unsigned char>(text[i + j]) & 0xc0) != 0x80) return false;
    }
    i += length;
  }
  return true;
}

void judge(const fake::Outcome& outcome, const fake::Sizes& sizes, bool planned) {
  if (outcome.failure.empty()) return;
  const std::string title = sizes.gather ? "BcqGather '" : "BcqMatMul '";
  if (outcome.failure.rfind(title, 0) != 0) fuzz::found("a message without operator and node: " + outcome.failure);
  if (!is_clean(outcome.failure)) fuzz::found("a message that is no clean text: " + outcome.failure);
  const bool reasoned = outcome.failure.find("expected") != std::string::npos ||
                        outcome.failure.find("overflows") != std::string::npos;
  const bool from_outside = outcome.failure.find("no such input") != std::string::npos ||
                            outcome.failure.find("no memory") != std::string::npos;
  if (!reasoned && !from_outside && !planned) fuzz::found("a message without a reason: " + outcome.failure);
}

const bcq::ort::OrtCustomOp* operator_for(const fake::Sizes& sizes, bool resident) {
  bcq::ort::OrtSessionOptions options;
  options.entries["bcq.weights"] = resident ? "resident" : "mapped";
  std::string why;
  const bcq::ort::OrtCustomOp* op = fake::registered(sizes, options, why);
  if (op == nullptr) fuzz::found("not registered: " + why);
  return op;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Bytes bytes(data, size);
  const fake::Sizes sizes = healthy_sizes(bytes);
  const bcq::ort::OrtCustomOp* op = operator_for(sizes, bytes.flag());
  fake::Node node = fake::healthy(sizes, bytes.number<uint8_t>());
  node.info.attributes["accuracy_level"].number = bytes.between(0, 4);
  for (int i = 0; i < 4 && !bytes.empty(); ++i) change(node, bytes);
  const int64_t planned = fake::fail_in;
  const int64_t alive = fake::alive;
  const fake::Outcome first = fake::run(op, node, sizes);
  fake::fail_in = planned;
  const fake::Outcome second = fake::run(op, node, sizes);
  fake::fail_in = -1;
  judge(first, sizes, planned >= 0);
  if (first.failure != second.failure || first.output != second.output) fuzz::found("two runs that differ");
  if (fake::alive != alive) fuzz::found("something was left behind");
  return 0;
}
