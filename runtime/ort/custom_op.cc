// SPDX-License-Identifier: Apache-2.0
#include "ort/custom_op.h"

namespace bcq::ort {
namespace {

const CustomOp& self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

const char* name(const OrtCustomOp* op) { return self(op).op->name; }
const char* provider(const OrtCustomOp*) { return nullptr; }  // the CPU
size_t input_count(const OrtCustomOp* op) { return self(op).op->input_count; }
size_t output_count(const OrtCustomOp* op) { return self(op).op->output_count; }

// Inputs after the first: codes, then float16 factors; a test compares this with the contract.
ONNXTensorElementDataType input_type(const OrtCustomOp* op, size_t index) {
  if (index == 0) return self(op).first_input;
  return index == 1 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

ONNXTensorElementDataType output_type(const OrtCustomOp* op, size_t) { return self(op).output; }

OrtCustomOpInputOutputCharacteristic required(const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; }
OrtMemType default_memory(const OrtCustomOp*, size_t) { return OrtMemTypeDefault; }
int no_variadic(const OrtCustomOp*) { return 0; }
int version(const OrtCustomOp*) { return int(contract::kOpsetVersion); }
size_t no_pairs(int** input_index, int** output_index) {
  *input_index = nullptr;
  *output_index = nullptr;
  return 0;
}
void release_pairs(int*, int*) {}

}  // namespace

CustomOp common_custom_op(const Calls& calls, const Settings& settings, const contract::Op& op,
                          ONNXTensorElementDataType first_input, ONNXTensorElementDataType output) {
  CustomOp made = {};
  made.version = uint32_t(contract::kOrtApiVersion);
  made.GetName = name;
  made.GetExecutionProviderType = provider;
  made.GetInputType = input_type;
  made.GetInputTypeCount = input_count;
  made.GetOutputType = output_type;
  made.GetOutputTypeCount = output_count;
  made.GetInputCharacteristic = required;
  made.GetOutputCharacteristic = required;
  made.GetInputMemoryType = default_memory;
  made.GetVariadicInputMinArity = no_variadic;
  made.GetVariadicInputHomogeneity = no_variadic;
  made.GetVariadicOutputMinArity = no_variadic;
  made.GetVariadicOutputHomogeneity = no_variadic;
  made.InferOutputShapeFn = infer_shape;
  made.GetStartVersion = version;
  made.GetEndVersion = version;
  made.GetMayInplace = no_pairs;
  made.ReleaseMayInplace = release_pairs;
  made.GetAliasMap = no_pairs;
  made.ReleaseAliasMap = release_pairs;
  made.calls = &calls;
  made.settings = &settings;
  made.op = &op;
  made.first_input = first_input;
  made.output = output;
  return made;
}

}  // namespace bcq::ort
