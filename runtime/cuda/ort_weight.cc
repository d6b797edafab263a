// SPDX-License-Identifier: Apache-2.0
#include "cuda/ort_weight.h"

namespace bcq::ort {
namespace {

// How each tensor is checked. Kernels read 16 bytes of codes and 8 bytes of factors at once.
struct Rule {
  const char* name;
  std::string (*check)(const Attributes&, Shape);
  ONNXTensorElementDataType type;
  size_t alignment;
};
constexpr Rule kRules[] = {
    {"codes", check_codes, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, 16},
    {"alpha_1", check_alpha_1, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 8},
    {"alpha_rest", check_alpha_rest, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 8},
    {"offset", check_offset, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 8},
};
constexpr size_t kCodes = 0;  // of the four
constexpr size_t kFirst = 1;  // position of codes among the inputs

// The tensor's address, or null when it is empty.
const void* address(const Rule& rule, const Attributes& attributes, const Tensor& tensor) {
  refuse_if(rule.check(attributes, tensor.shape()));
  if (tensor.is_empty()) return nullptr;
  check_fed(rule.name, tensor, rule.type, rule.alignment);
  return tensor.data<void>();
}

}  // namespace

CudaWeight::CudaWeight(const Calls& calls, const OrtKernelInfo* info, const contract::Op& op)
    : attributes_(read_attributes(calls, info, op)) {
  refuse_if(check_attributes(attributes_));
  for (size_t i = 0; i < kTensors; ++i) {
    Tensor tensor;
    fed_[i] = !constant_input(calls, info, kFirst + i, tensor);
    if (fed_[i]) continue;
    constants_[i] = address(kRules[i], attributes_, tensor);
    if (i == kCodes) attributes_.planes = tensor.shape().dims[2];
  }
  if (fed_[kCodes]) {
    throw Refusal{"codes: got a tensor that is fed at run time, expected a constant. Make it an initializer that is "
                  "no graph input."};
  }
}

void CudaWeight::pointers(const Calls& calls, const OrtKernelContext* context, const void* (&held)[kTensors]) const {
  for (size_t i = 0; i < kTensors; ++i) {
    held[i] = constants_[i];
    if (!fed_[i]) continue;
    const OrtValue* value = nullptr;
    check(calls, calls.KernelContext_GetInput(context, kFirst + i, &value));
    held[i] = address(kRules[i], attributes_, Tensor(calls, value));
  }
}

}  // namespace bcq::ort
