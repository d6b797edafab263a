// SPDX-License-Identifier: Apache-2.0
// The contract that the library was built with, as text: a test compares it with what the compiler reads.
#include <string>

#include "contract.h"
#include "core/bcq_core.h"

namespace bcq {
namespace {

std::string ports(const contract::Port* first, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    const contract::Port& port = first[i];
    text += (i == 0 ? "" : " ") + std::string(port.name) + ":" + port.types + "[" + port.shape + "]";
  }
  return text;
}

std::string line(const contract::Op& op) {
  std::string text = std::string(op.name) + "(" + ports(op.inputs, op.input_count) + ")->(" +
                     ports(op.outputs, op.output_count) + "){";
  for (size_t i = 0; i < op.attribute_count; ++i) {
    text += (i == 0 ? "" : " ") + std::string(op.attributes[i].name) + ":" + op.attributes[i].type;
  }
  return text + "}\n";
}

std::string everything() {
  const auto number = [](const char* name, int64_t value) { return " " + std::string(name) + "=" + std::to_string(value); };
  return std::string(contract::kDomain) + number("opset", contract::kOpsetVersion) +
         number("format", contract::kFormatVersion) + " layout=" + contract::kLayout +
         number("tile_rows", contract::kTileRows) + number("word_bits", contract::kWordBits) +
         number("bits", contract::kMinBits) + ".." + std::to_string(contract::kMaxBits) +
         number("group_size_multiple", contract::kGroupSizeMultiple) + number("ort_api", contract::kOrtApiVersion) + "\n" +
         line(contract::kBcqMatMul) + line(contract::kBcqGather);
}

}  // namespace
}  // namespace bcq

extern "C" const char* bcq_contract(void) {
  static const std::string text = bcq::everything();
  return text.c_str();
}
