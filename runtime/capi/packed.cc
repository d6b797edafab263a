// SPDX-License-Identifier: Apache-2.0
#include "capi/packed.h"

#include <cstring>

#include "core/validate.h"

namespace bcq::capi {
namespace {

constexpr size_t kParts = 4;  // codes, alpha_1, alpha_rest, offset: the inputs of a node after the first
constexpr const char* kPartNames[kParts] = {"codes", "alpha_1", "alpha_rest", "offset"};
constexpr const char* kSuffix = ".codes";

void refuse(const std::string& wrong) {
  if (!wrong.empty()) throw Wrong(wrong);
}

Attributes attributes_of(const Node& node) {
  Attributes found;
  const auto number = [&](const char* name) {
    const auto value = node.numbers.find(name);
    if (value == node.numbers.end()) throw Wrong(std::string("attribute ") + name + ": got none, expected one");
    return value->second;
  };
  const auto text = [&](const char* name) {
    const auto value = node.texts.find(name);
    return value == node.texts.end() ? std::string() : value->second;
  };
  found.format_version = number("format_version");
  found.bits = number("bits");
  found.K = number("K");
  found.N = number("N");
  found.group_size = number("group_size");
  const auto level = node.numbers.find("accuracy_level");
  found.accuracy_level = level == node.numbers.end() ? 0 : level->second;
  found.layout = text("layout");
  found.code_hash = text("code_hash");
  refuse(check_attributes(found));
  return found;
}

void check_shapes(const Attributes& attributes, const Initializer* const (&parts)[kParts]) {
  const auto shape = [&](size_t i) { return Shape{parts[i]->dims.data(), parts[i]->dims.size()}; };
  refuse(check_codes(attributes, shape(0)));
  refuse(check_alpha_1(attributes, shape(1)));
  refuse(check_alpha_rest(attributes, shape(2)));
  refuse(check_offset(attributes, shape(3)));
}

}  // namespace

std::string PackedReader::name(const Node& node) {
  if (node.inputs.size() != kParts + 1) throw Wrong("expected 5 inputs");
  const std::string& codes = node.inputs[1];
  const size_t suffix = std::strlen(kSuffix);
  const bool ends = codes.size() > suffix && codes.compare(codes.size() - suffix, suffix, kSuffix) == 0;
  return ends ? codes.substr(0, codes.size() - suffix) : codes;
}

BcqMatrix PackedReader::read(const Node& node) {
  Attributes attributes = attributes_of(node);
  const Initializer* parts[kParts];
  for (size_t i = 0; i < kParts; ++i) {
    const auto found = graph_.initializers.find(node.inputs.at(i + 1));
    if (found == graph_.initializers.end()) {
      throw Wrong(std::string(kPartNames[i]) + ": got a computed value, expected a constant");
    }
    parts[i] = &found->second;
  }
  check_shapes(attributes, parts);
  attributes.planes = parts[0]->dims[2];
  BcqMatrix matrix = {};
  matrix.N = attributes.N;
  matrix.K = attributes.K;
  matrix.group_size = attributes.group_size;
  matrix.bits = int32_t(attributes.bits);
  matrix.planes = int32_t(attributes.planes);
  const auto data = [&](size_t i, int64_t type, size_t element) {
    return files_.data(node.inputs[i + 1], *parts[i], type, element);
  };
  matrix.codes = static_cast<const uint32_t*>(data(0, kUint32, sizeof(uint32_t)));
  const auto half = [&](size_t i) { return static_cast<const uint16_t*>(data(i, kFloat16, sizeof(uint16_t))); };
  matrix.alpha_1 = half(1);
  matrix.alpha_rest = half(2);
  matrix.offset = half(3);
  const bool first = checked_.insert({matrix.codes, matrix.N, matrix.K, matrix.planes}).second;
  if (first) refuse(check_padding(attributes, matrix.codes));
  return matrix;
}

}  // namespace bcq::capi
