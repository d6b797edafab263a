// SPDX-License-Identifier: Apache-2.0
#include "ort/custom_op.h"
#include "ort/node.h"

namespace bcq::ort {
namespace {

struct OwnedShape {
  const Calls& calls;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ~OwnedShape() {
    if (info != nullptr) calls.ReleaseTensorTypeAndShapeInfo(info);
  }
};

// Element type and dimensions of a graph value; -1 is unknown, and then it may have a name.
struct Dimensions {
  size_t rank = 0;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int64_t values[Tensor::kMaxRank + 1] = {};
  const char* names[Tensor::kMaxRank + 1] = {};
};

int64_t int_attribute(const Calls& calls, OrtShapeInferContext* context, const char* name) {
  const OrtOpAttr* attribute = nullptr;
  check(calls, calls.ShapeInferContext_GetAttribute(context, name, &attribute));
  int64_t value = 0;
  size_t size = 0;
  check(calls, calls.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof value, &size));
  return value;
}

// False when nothing is known: an unknown rank looks like rank 0 here.
bool read_first_input(const Calls& calls, const OrtTensorTypeAndShapeInfo* info, Dimensions& dims) {
  check(calls, calls.GetTensorElementType(info, &dims.type));
  check(calls, calls.GetDimensionsCount(info, &dims.rank));
  if (dims.rank == 0 || dims.rank > Tensor::kMaxRank) return false;
  check(calls, calls.GetDimensions(info, dims.values, dims.rank));
  check(calls, calls.GetSymbolicDimensions(info, dims.names, dims.rank));
  for (size_t i = 0; i < dims.rank; ++i) {
    if (dims.names[i] == nullptr) dims.names[i] = "";
  }
  return true;
}

void set_output(const CustomOp& op, OrtShapeInferContext* context, Dimensions& dims) {
  const Calls& calls = *op.calls;
  OwnedShape output{calls};
  check(calls, calls.CreateTensorTypeAndShapeInfo(&output.info));
  // ONNX Runtime asks the first registration of a name for every type, so the type comes from the value.
  check(calls, calls.SetTensorElementType(output.info, op.keeps_last_input ? op.output : dims.type));
  check(calls, calls.SetDimensions(output.info, dims.values, dims.rank));
  check(calls, calls.SetSymbolicDimensions(output.info, dims.names, dims.rank));
  check(calls, calls.ShapeInferContext_SetOutputTypeShape(context, 0, output.info));
}

// An unknown dimension without a name would reach ONNX Runtime as the number -1, and its folding of shapes would compute
// with that; then it is better to say nothing.
bool all_known_or_named(const Dimensions& dims) {
  for (size_t i = 0; i < dims.rank; ++i) {
    if (dims.values[i] < 0 && dims.names[i][0] == '\0') return false;
  }
  return true;
}

void infer(const CustomOp& op, OrtShapeInferContext* context) {
  // The context keeps this one.
  OrtTensorTypeAndShapeInfo* input = nullptr;
  check(*op.calls, op.calls->ShapeInferContext_GetInputTypeShape(context, 0, &input));
  Dimensions dims;
  if (!read_first_input(*op.calls, input, dims)) return;
  if (op.keeps_last_input) ++dims.rank;
  dims.values[dims.rank - 1] = int_attribute(*op.calls, context, op.last_dimension);
  dims.names[dims.rank - 1] = "";
  if (dims.values[dims.rank - 1] > 0 && all_known_or_named(dims)) set_output(op, context, dims);
}

}  // namespace

OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const CustomOp& custom = *static_cast<const CustomOp*>(op);
  try {
    infer(custom, context);
  } catch (...) {
    // An unknown shape is no fault; creation reports what is wrong with the node.
  }
  return nullptr;
}

}  // namespace bcq::ort
