// SPDX-License-Identifier: Apache-2.0
// A healthy node of either operator for the stand-in ONNX Runtime, and what one does with it: register, create, infer
// shapes, run, destroy.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fake_ort.h"

namespace fake {

struct Sizes {
  int64_t bits = 3;
  int64_t further = 0;  // planes that codes hold and the node does not read
  int64_t K = 100;
  int64_t N = 50;
  int64_t group_size = 32;
  int64_t M = 3;
  bool offset = true;
  bool gather = false;
  bool half = false;  // BcqMatMul: float16 activations; BcqGather: int32 indices
  bool brain = false;  // BcqMatMul: bfloat16 activations
};

// Inputs in the order of the contract: A or indices, codes, alpha_1, alpha_rest, offset.
struct Node {
  bcq::ort::OrtKernelInfo info;
  std::vector<std::unique_ptr<bcq::ort::OrtValue>> inputs;
  std::vector<bool> fed;  // not a constant
};

Node healthy(const Sizes& sizes, uint32_t seed);

// The registration for the operator and first type of `sizes`; null when registration failed. The failure's text, if
// any, goes to `why`.
const bcq::ort::OrtCustomOp* registered(const Sizes& sizes, bcq::ort::OrtSessionOptions& options, std::string& why);

// What became of one node. `failure` is the message of the first status that came back, empty when all went well.
struct Outcome {
  std::string failure;
  bool created = false;
  bool ran = false;
  std::vector<uint8_t> output;
  std::vector<int64_t> shape;
};

Outcome run(const bcq::ort::OrtCustomOp* op, Node& node, const Sizes& sizes);

}  // namespace fake
