// SPDX-License-Identifier: Apache-2.0
// libbcq_ops_cuda.so as the CPU library sees it: opened while operators are registered, never linked.
#pragma once

#include "cuda/bcq_cuda.h"

namespace bcq::ort {

struct CudaPart {
  decltype(&bcq_cuda_matmul) matmul;
  decltype(&bcq_cuda_gather) gather;
};

// The CUDA part that lies beside this library or where BCQ_CUDA_LIBRARY says, or null: there is none, it has another
// interface, or this machine has no device for it. `bcq doctor` tells which.
const CudaPart* cuda_part();

}  // namespace bcq::ort
