// SPDX-License-Identifier: Apache-2.0
// A stand-in for ONNX Runtime that is small enough to be hostile: every function that the library calls, over plain
// structs that a test fills, with a count of what is alive and a way to fail at the n-th call.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ort/ort_abi.h"

namespace bcq::ort {

// A tensor or what a graph says about one. The bytes are on the heap in their exact size, so that AddressSanitizer
// sees the first read past them.
struct OrtTensorTypeAndShapeInfo {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims;
  std::vector<std::string> names;  // of the dimensions; missing ones are empty
};

struct OrtValue {
  OrtTensorTypeAndShapeInfo shape;
  std::unique_ptr<uint8_t[]> bytes;
  uint8_t* data = nullptr;  // usually bytes.get()
};

struct OrtTypeInfo {
  const OrtTensorTypeAndShapeInfo* shape = nullptr;  // null: no tensor
};

struct OrtOpAttr {
  bool is_int = true;
  int64_t number = 0;
  std::string text;
};

struct OrtKernelInfo {
  std::string name = "the_node";
  std::string output = "Y";
  std::map<std::string, OrtOpAttr> attributes;
  std::vector<OrtValue*> constants;                       // null: fed at run time
  std::vector<OrtTensorTypeAndShapeInfo> declared;        // of the inputs
};

struct OrtKernelContext {
  std::vector<OrtValue*> inputs;
  OrtValue output;
};

struct OrtShapeInferContext {
  const OrtKernelInfo* info;
  OrtTensorTypeAndShapeInfo result;
  bool has_result = false;
};

struct OrtSessionOptions {
  std::map<std::string, std::string> entries;
  std::vector<OrtCustomOpDomain*> domains;
};

struct OrtCustomOpDomain {
  std::string name;
  std::vector<const OrtCustomOp*> ops;
};

struct OrtStatus {
  OrtErrorCode code;
  std::string message;
};

}  // namespace bcq::ort

namespace fake {

// What the library has not given back yet: statuses, shapes, types, allocators, blocks.
extern int64_t alive;
// Functions that may fail count down from here and fail when they reach zero; negative: never.
extern int64_t fail_in;
// Bytes that one allocation may have at most; beyond it the allocator answers null.
extern size_t largest_block;

const bcq::ort::OrtApiBase* base();
const bcq::ort::OrtApi* api();

// Element size in bytes; 1 for types that the operators do not take.
size_t element_bytes(bcq::ort::ONNXTensorElementDataType type);
// Fills a value with zeros; false when the dimensions ask for more than `most` bytes, and then nothing is changed.
bool resize(bcq::ort::OrtValue& value, bcq::ort::ONNXTensorElementDataType type, std::vector<int64_t> dims,
            size_t most = size_t(1) << 26);

}  // namespace fake
