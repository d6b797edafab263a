// SPDX-License-Identifier: Apache-2.0
// The packed weight of one node: codes fixed at creation, alphas and offset fixed or fed with every run.
#pragma once

#include <string>

#include "ort/node.h"

namespace bcq::ort {

// Pointers for one run, in the order and layout of ops/README.md.
struct WeightPointers {
  const uint32_t* codes;
  const uint16_t* alpha_1;
  const uint16_t* alpha_rest;  // null when bits = 1
  const uint16_t* offset;      // null when there is none
};

class Weight {
 public:
  // Reads and validates attributes, codes, padding and all constant scaling factors; throws Refusal.
  Weight(const Calls& calls, const OrtKernelInfo* info, const contract::Op& op);

  const Attributes& attributes() const { return attributes_; }
  const uint32_t* codes() const { return constants_.codes; }
  // Fetches and validates what is fed at run time; throws Refusal.
  WeightPointers pointers(const Calls& calls, const OrtKernelContext* context) const;

 private:
  Attributes attributes_;
  WeightPointers constants_ = {};
  bool fed_[3] = {};  // alpha_1, alpha_rest, offset
};

}  // namespace bcq::ort
