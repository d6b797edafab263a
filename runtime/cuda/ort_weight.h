// SPDX-License-Identifier: Apache-2.0
// The packed weight of a node on the CUDA execution provider: as ort/weight.h, but its bytes lie on the device, so that
// the host checks attributes, types, shapes and addresses and no byte. Padding bits may have any value: the kernels
// multiply them by zero or store no result of theirs.
#pragma once

#include <string>

#include "ort/node.h"

namespace bcq::ort {

class CudaWeight {
 public:
  // Validates attributes and all constant tensors; throws Refusal.
  CudaWeight(const Calls& calls, const OrtKernelInfo* info, const contract::Op& op);

  const Attributes& attributes() const { return attributes_; }

  // Writes what both problems have in common; fetches and validates tensors that are fed at run time.
  template <typename Problem>
  void fill(const Calls& calls, const OrtKernelContext* context, Problem& problem) const {
    const void* held[kTensors];
    pointers(calls, context, held);
    problem.K = attributes_.K;
    problem.N = attributes_.N;
    problem.group_size = attributes_.group_size;
    problem.bits = int32_t(attributes_.bits);
    problem.planes = int32_t(attributes_.planes);
    problem.codes = static_cast<const uint32_t*>(held[0]);
    problem.alpha_1 = static_cast<const uint16_t*>(held[1]);
    problem.alpha_rest = static_cast<const uint16_t*>(held[2]);
    problem.offset = static_cast<const uint16_t*>(held[3]);
  }

 private:
  static constexpr size_t kTensors = 4;  // codes, alpha_1, alpha_rest, offset; a test compares them with the contract
  void pointers(const Calls& calls, const OrtKernelContext* context, const void* (&held)[kTensors]) const;

  Attributes attributes_;
  const void* constants_[kTensors] = {};
  bool fed_[kTensors] = {};
};

}  // namespace bcq::ort
