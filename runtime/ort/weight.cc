// SPDX-License-Identifier: Apache-2.0
#include "ort/weight.h"

namespace bcq::ort {
namespace {

// Input positions of both operators; a test compares them with the contract.
constexpr size_t kCodes = 1;
constexpr size_t kFirstFactor = 2;

// How each scaling factor is checked and where its pointer goes.
struct Factor {
  std::string (*check)(const Attributes&, Shape);
  const uint16_t* WeightPointers::* pointer;
  const char* name;
};
constexpr Factor kFactors[] = {
    {check_alpha_1, &WeightPointers::alpha_1, "alpha_1"},
    {check_alpha_rest, &WeightPointers::alpha_rest, "alpha_rest"},
    {check_offset, &WeightPointers::offset, "offset"},
};

void check_type(const char* name, const Tensor& tensor, ONNXTensorElementDataType expected, const char* expected_name) {
  if (tensor.type() == expected) return;
  throw Refusal{std::string(name) + " type: got ONNX element type " + std::to_string(int(tensor.type())) +
                ", expected " + expected_name + ". Export the model again."};
}

// External data may begin at any byte; the format asks for multiples of 64, kernels need whole elements.
void check_alignment(const char* name, const Tensor& tensor, size_t element) {
  const size_t beyond = reinterpret_cast<uintptr_t>(tensor.data<void>()) % element;
  if (beyond == 0) return;
  throw Refusal{std::string(name) + " address: got " + std::to_string(beyond) + " bytes beyond a multiple of " +
                std::to_string(element) + ", expected none. Export the model again."};
}

void bind(const Factor& factor, const Attributes& attributes, const Tensor& tensor, WeightPointers& pointers) {
  check_type(factor.name, tensor, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "float16");
  refuse_if(factor.check(attributes, tensor.shape()));
  if (!tensor.is_empty()) check_alignment(factor.name, tensor, sizeof(uint16_t));
  pointers.*factor.pointer = tensor.is_empty() ? nullptr : tensor.data<uint16_t>();
}

}  // namespace

Weight::Weight(const Calls& calls, const OrtKernelInfo* info, const contract::Op& op)
    : attributes_(read_attributes(calls, info, op)) {
  refuse_if(check_attributes(attributes_));
  Tensor codes;
  if (!constant_input(calls, info, kCodes, codes)) {
    throw Refusal{"codes: got a tensor that is fed at run time, expected a constant. Make it an initializer that is "
                  "no graph input."};
  }
  check_type("codes", codes, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, "uint32");
  refuse_if(check_codes(attributes_, codes.shape()));
  attributes_.planes = codes.shape().dims[2];
  check_alignment("codes", codes, sizeof(uint32_t));
  constants_.codes = codes.data<uint32_t>();
  refuse_if(check_padding(attributes_, constants_.codes));
  for (size_t i = 0; i < 3; ++i) {
    Tensor factor;
    fed_[i] = !constant_input(calls, info, kFirstFactor + i, factor);
    if (!fed_[i]) bind(kFactors[i], attributes_, factor, constants_);
  }
}

WeightPointers Weight::pointers(const Calls& calls, const OrtKernelContext* context) const {
  WeightPointers pointers = constants_;
  for (size_t i = 0; i < 3; ++i) {
    if (!fed_[i]) continue;
    const OrtValue* value = nullptr;
    check(calls, calls.KernelContext_GetInput(context, kFirstFactor + i, &value));
    bind(kFactors[i], attributes_, Tensor(calls, value), pointers);
  }
  return pointers;
}

}  // namespace bcq::ort
