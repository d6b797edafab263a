// SPDX-License-Identifier: Apache-2.0
// What a kernel learns of its node and of its tensors, with every status turned into one C++ exception.
#pragma once

#include <exception>
#include <string>

#include "contract.h"
#include "core/validate.h"
#include "ort/ort_abi.h"

namespace bcq::ort {

// Thrown inside the library only; callbacks turn it into a status.
struct Refusal {
  std::string message;
};

// Thrown where memory is wanted and there is none; `advice` is a sentence.
struct NoMemory {
  size_t bytes;
  const char* advice;
};

// Throws Refusal unless the validator's answer is empty.
inline void refuse_if(const std::string& error) {
  if (!error.empty()) throw Refusal{error};
}

// Throws Refusal with ONNX Runtime's own message when `status` is one.
void check(const Calls& calls, OrtStatus* status);

// Runs `body` and turns whatever it throws into a status; nothing leaves the library as an exception.
template <typename Body>
OrtStatus* guarded(const Calls& calls, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const Refusal& refusal) {
    return calls.CreateStatus(ORT_INVALID_ARGUMENT, refusal.message.c_str());
  } catch (const std::exception& error) {
    return calls.CreateStatus(ORT_RUNTIME_EXCEPTION, error.what());
  } catch (...) {
    return calls.CreateStatus(ORT_RUNTIME_EXCEPTION, "bcq: unknown failure");
  }
}

// One tensor: its shape and its bytes. Shapes up to rank kMaxRank are kept without an allocation.
class Tensor {
 public:
  static constexpr size_t kMaxRank = 16;

  Tensor() = default;
  // Throws Refusal when the rank is above kMaxRank.
  Tensor(const Calls& calls, const OrtValue* value);

  Shape shape() const { return {dims_, rank_}; }
  ONNXTensorElementDataType type() const { return type_; }
  bool is_empty() const {
    for (size_t i = 0; i < rank_; ++i) {
      if (dims_[i] == 0) return true;
    }
    return false;
  }
  template <typename T>
  const T* data() const {
    return static_cast<const T*>(data_);
  }

 private:
  const void* data_ = nullptr;
  size_t rank_ = 0;
  int64_t dims_[kMaxRank] = {};
  ONNXTensorElementDataType type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

// The node's name as the model has it, or the name of its output when it has none.
std::string node_name(const Calls& calls, const OrtKernelInfo* info);

// Operator and node for messages: "BcqMatMul 'name'", short, without control characters and as valid UTF-8.
std::string node_title(const Calls& calls, const OrtKernelInfo* info, const char* op);

// Every attribute that the contract lists for `op`; throws Refusal naming the one that is missing or mistyped.
Attributes read_attributes(const Calls& calls, const OrtKernelInfo* info, const contract::Op& op);

// What a program feeds: the type that the node was made for, at an address of whole elements; throws Refusal. ONNX
// Runtime checks the type too; kernels would read past the end of anything smaller.
void check_fed(const char* name, const Tensor& tensor, ONNXTensorElementDataType expected, size_t element);

// The constant input at `index`; false when it is fed at run time.
bool constant_input(const Calls& calls, const OrtKernelInfo* info, size_t index, Tensor& out);

// The last dimension that the graph declares for the input at `index`, or -1 when it says nothing about it.
int64_t declared_last_dimension(const Calls& calls, const OrtKernelInfo* info, size_t index);

}  // namespace bcq::ort
