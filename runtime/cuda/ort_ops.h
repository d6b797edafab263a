// SPDX-License-Identifier: Apache-2.0
// BcqMatMul and BcqGather for ONNX Runtime's CUDA execution provider: the same operators, in the same domain.
#pragma once

#include <vector>

#include "cuda/part.h"
#include "ort/custom_op.h"

namespace bcq::ort {

struct CudaOp : CustomOp {
  const CudaPart* part;
#define BCQ_ORT_SLOT(position, Result, name, arguments) Result(*name) arguments;
#include "cuda/slots.inc"
#undef BCQ_ORT_SLOT
};

// Registrations for every type; none where there is no CUDA part. They point to `calls` and `settings`.
std::vector<CudaOp> cuda_ops(const OrtApi* api, const Calls& calls, const Settings& settings);

}  // namespace bcq::ort
