// SPDX-License-Identifier: Apache-2.0
// One operator registration: the table of callbacks that ONNX Runtime calls, and what they share.
#pragma once

#include "contract.h"
#include "ort/ort_abi.h"
#include "ort/settings.h"

namespace bcq::ort {

// A registration of `op` for one element type of its first input and one of its output. It lives as long as the
// process, because ONNX Runtime keeps the pointer for as long as any session does.
struct CustomOp : OrtCustomOp {
  const Calls* calls;
  const Settings* settings;
  const contract::Op* op;
  ONNXTensorElementDataType first_input;
  ONNXTensorElementDataType output;
  const char* last_dimension;  // the attribute that gives Y's last dimension: "N" or "K"
  bool keeps_last_input;       // Y's shape is [first input..., last], not [first input without its last, last]
};

// Everything that all registrations have in common, shape inference included; creation and compute are still null.
CustomOp common_custom_op(const Calls& calls, const Settings& settings, const contract::Op& op,
                          ONNXTensorElementDataType first_input, ONNXTensorElementDataType output);

CustomOp matmul_op(const Calls& calls, const Settings& settings, ONNXTensorElementDataType type);
CustomOp gather_op(const Calls& calls, const Settings& settings, ONNXTensorElementDataType index_type);

// Gives Y's shape from the first input's, names of dynamic dimensions included. It never refuses: ONNX Runtime ignores
// a status from here, so creation does the refusing.
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context);

}  // namespace bcq::ort
