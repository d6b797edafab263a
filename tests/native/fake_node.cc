// SPDX-License-Identifier: Apache-2.0
#include "fake_node.h"

#include <cstring>
#include <random>

#include "core/bcq_core.h"
#include "core/half.h"

extern "C" BCQ_EXPORT bcq::ort::OrtStatus* RegisterCustomOps(bcq::ort::OrtSessionOptions* options,
                                                             const bcq::ort::OrtApiBase* base);

namespace fake {

using namespace bcq::ort;

namespace {

constexpr ONNXTensorElementDataType kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;

ONNXTensorElementDataType first_type(const Sizes& s) {
  if (s.gather) return s.half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  if (s.brain) return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  return s.half ? kHalf : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

void fill_first(OrtValue& value, const Sizes& s, std::mt19937& random) {
  resize(value, first_type(s), s.gather ? std::vector<int64_t>{s.M} : std::vector<int64_t>{s.M, s.K});
  const int64_t count = s.gather ? s.M : s.M * s.K;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = int64_t(random() % uint64_t(2 * s.N)) - s.N;
    const float number = float(random() % 2000) / 1000 - 1;
    const uint16_t half = uint16_t((random() & 0x8000u) | (0x3000u + random() % 0x800u));
    if (s.gather && s.half) reinterpret_cast<int32_t*>(value.data)[i] = int32_t(index);
    else if (s.gather) reinterpret_cast<int64_t*>(value.data)[i] = index;
    else if (s.brain) reinterpret_cast<uint16_t*>(value.data)[i] = bcq::float_to_brain(number);
    else if (s.half) reinterpret_cast<uint16_t*>(value.data)[i] = half;
    else reinterpret_cast<float*>(value.data)[i] = number;
  }
}

// Random bits, padding zero.
void fill_codes(OrtValue& value, const Sizes& s, std::mt19937& random) {
  const int64_t tiles = (s.N + 15) / 16, chunks = (s.K + 31) / 32, planes = s.bits + s.further;
  resize(value, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, {tiles, chunks, planes, 16});
  uint32_t* word = reinterpret_cast<uint32_t*>(value.data);
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t left = s.K - 32 * c;
      const uint32_t used = left >= 32 ? ~uint32_t(0) : (uint32_t(1) << left) - 1;
      for (int64_t i = 0; i < planes * 16; ++i) *word++ = 16 * t + i % 16 < s.N ? uint32_t(random()) & used : 0;
    }
  }
}

void fill_factor(OrtValue& value, std::vector<int64_t> dims, std::mt19937& random) {
  resize(value, kHalf, std::move(dims));
  uint16_t* half = reinterpret_cast<uint16_t*>(value.data);
  int64_t count = 1;
  for (const int64_t size : value.shape.dims) count *= size;
  for (int64_t i = 0; i < count; ++i) half[i] = uint16_t(0x2c00u + random() % 0x800u);
}

OrtOpAttr number(int64_t value) { return {true, value, {}}; }
OrtOpAttr text(std::string value) { return {false, 0, std::move(value)}; }

std::string take(OrtStatus* status) {
  if (status == nullptr) return {};
  std::string message = status->message;
  const Calls calls = bcq::ort::calls_of(api());
  calls.ReleaseStatus(status);
  return message.empty() ? "a status without a message" : message;
}

void infer(const OrtCustomOp* op, const Node& node, Outcome& outcome) {
  OrtShapeInferContext context{&node.info, {}, false};
  const std::string failure = take(op->InferOutputShapeFn(op, &context));
  if (!failure.empty()) outcome.failure = "shape inference: " + failure;
}

// Ends with its scope, also by an exception.
struct Kernel {
  const OrtCustomOp* op;
  void* state = nullptr;
  ~Kernel() {
    if (state != nullptr) op->KernelDestroy(state);
  }
};

void compute(const OrtCustomOp* op, void* kernel, Node& node, const Sizes& s, Outcome& outcome) {
  OrtKernelContext context;
  for (const auto& input : node.inputs) context.inputs.push_back(input.get());
  context.output.shape.type = s.gather ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : first_type(s);
  outcome.failure = take(op->KernelComputeV2(kernel, &context));
  outcome.ran = outcome.failure.empty();
  if (!outcome.ran) return;
  outcome.shape = context.output.shape.dims;
  size_t bytes = element_bytes(context.output.shape.type);
  for (const int64_t size : outcome.shape) bytes *= size_t(size);
  outcome.output.assign(context.output.data, context.output.data + bytes);
}

}  // namespace

Node healthy(const Sizes& s, uint32_t seed) {
  std::mt19937 random(seed);
  Node node;
  for (int i = 0; i < 5; ++i) node.inputs.push_back(std::make_unique<OrtValue>());
  const int64_t tiles = (s.N + 15) / 16, groups = (s.K - 1) / s.group_size + 1;
  fill_first(*node.inputs[0], s, random);
  fill_codes(*node.inputs[1], s, random);
  fill_factor(*node.inputs[2], {tiles, groups, 16}, random);
  fill_factor(*node.inputs[3], {tiles, groups, s.bits - 1, 16}, random);
  fill_factor(*node.inputs[4], s.offset ? std::vector<int64_t>{tiles, groups, 16} : std::vector<int64_t>{0}, random);
  node.fed = {true, false, false, false, false};
  node.info.attributes = {{"format_version", number(s.further == 0 ? 1 : 2)}, {"layout", text("tile16")},
                          {"bits", number(s.bits)},      {"K", number(s.K)},
                          {"N", number(s.N)},            {"group_size", number(s.group_size)},
                          {"accuracy_level", number(0)}, {"code_hash", text(std::string(64, 'a'))}};
  node.info.declared.resize(5);
  node.info.declared[0] = node.inputs[0]->shape;
  node.info.declared[0].dims[0] = -1;
  node.info.declared[0].names = {"tokens"};
  return node;
}

const OrtCustomOp* registered(const Sizes& s, OrtSessionOptions& options, std::string& why) {
  why = take(RegisterCustomOps(&options, base()));
  if (!why.empty() || options.domains.empty()) return nullptr;
  const char* wanted = s.gather ? "BcqGather" : "BcqMatMul";
  for (const OrtCustomOp* op : options.domains[0]->ops) {
    if (std::strcmp(op->GetName(op), wanted) == 0 && op->GetInputType(op, 0) == first_type(s)) return op;
  }
  return nullptr;
}

Outcome run(const OrtCustomOp* op, Node& node, const Sizes& s) {
  node.info.constants.clear();
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    node.info.constants.push_back(node.fed[i] ? nullptr : node.inputs[i].get());
  }
  Outcome outcome;
  infer(op, node, outcome);
  if (!outcome.failure.empty()) return outcome;
  Kernel kernel{op};
  outcome.failure = take(op->CreateKernelV2(op, api(), &node.info, &kernel.state));
  outcome.created = outcome.failure.empty();
  if (outcome.created) compute(op, kernel.state, node, s, outcome);
  return outcome;
}

}  // namespace fake
