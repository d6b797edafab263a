// SPDX-License-Identifier: Apache-2.0
// The operators of the CUDA provider, from registration to result, on the stand-in ONNX Runtime with the emulated device:
// each node must agree with the CPU's, reach the stream that the runtime gave, and refuse what is malformed.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>

#include "core/half.h"
#include "fake_node.h"

using namespace bcq::ort;

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace {

constexpr int kStreamSlot = 193;
int streams_asked = 0;

OrtStatus* give_stream(const OrtKernelContext*, void** out) {
  ++streams_asked;
  *out = nullptr;
  return nullptr;
}

const OrtApi* api_with_streams(uint32_t version) {
  const OrtApi* api = fake::base()->GetApi(version);
  if (api != nullptr) {
    reinterpret_cast<void**>(const_cast<OrtApi*>(api))[kStreamSlot] = reinterpret_cast<void*>(&give_stream);
  }
  return api;
}

const char* release() { return "1.31.0"; }

ONNXTensorElementDataType first_type(const fake::Sizes& s) {
  if (s.gather) return s.half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  if (s.brain) return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  return s.half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

size_t output_bytes(const fake::Sizes& s) { return !s.gather && (s.half || s.brain) ? 2 : 4; }

const OrtCustomOp* find(const OrtSessionOptions& options, const fake::Sizes& s, bool cuda) {
  const auto first = first_type(s);
  for (const OrtCustomOp* op : options.domains[0]->ops) {
    const bool on_cuda = op->GetExecutionProviderType(op) != nullptr;
    if (on_cuda == cuda && std::strcmp(op->GetName(op), s.gather ? "BcqGather" : "BcqMatMul") == 0 &&
        op->GetInputType(op, 0) == first) {
      return op;
    }
  }
  return nullptr;
}

float value_at(const fake::Outcome& outcome, const fake::Sizes& s, size_t i) {
  if (output_bytes(s) == 2) {
    uint16_t bits;
    std::memcpy(&bits, outcome.output.data() + 2 * i, 2);
    return s.brain ? bcq::brain_to_float(bits) : bcq::half_to_float(bits);
  }
  float value;
  std::memcpy(&value, outcome.output.data() + 4 * i, 4);
  return value;
}

// Both compute float32 sums of a hundred products of the size of one; half results have 11 bits. In bfloat16 results and,
// in the tile kernels, weights have 8: two steps of 2^-8 of sums that may cancel.
bool agree(const fake::Outcome& a, const fake::Outcome& b, const fake::Sizes& s) {
  if (a.shape != b.shape || a.output.size() != b.output.size()) return false;
  const size_t size = output_bytes(s);
  const float allowed = s.brain ? 3e-2f : s.half ? 4e-3f : 2e-4f;
  for (size_t i = 0; i < a.output.size() / size; ++i) {
    const float x = value_at(a, s, i), y = value_at(b, s, i);
    if (!(std::fabs(x - y) <= allowed * (1 + std::fabs(y)))) return false;
  }
  return true;
}

int failures = 0;

void expect(bool well, const char* what, const std::string& why) {
  if (well) return;
  ++failures;
  std::printf("%s: %s\n", what, why.c_str());
}

void compare(const OrtSessionOptions& options, const fake::Sizes& s, const std::function<void(fake::Node&)>& change) {
  fake::Node node = fake::healthy(s, 7);
  change(node);
  const fake::Outcome cpu = fake::run(find(options, s, false), node, s);
  const fake::Outcome cuda = fake::run(find(options, s, true), node, s);
  expect(cpu.ran && cuda.ran, "did not run", cpu.failure + cuda.failure);
  expect(agree(cuda, cpu, s), "differs", "bits " + std::to_string(s.bits) + " M " + std::to_string(s.M));
}

void refuse(const OrtSessionOptions& options, const std::function<void(fake::Node&)>& change, const char* words) {
  const fake::Sizes s;
  fake::Node node = fake::healthy(s, 7);
  change(node);
  const fake::Outcome cuda = fake::run(find(options, s, true), node, s);
  expect(cuda.failure.find(words) != std::string::npos, words, cuda.failure);
}

}  // namespace

int main() {
  OrtSessionOptions options;
  const OrtApiBase base = {api_with_streams, release};
  if (RegisterCustomOps(&options, &base) != nullptr || options.domains.empty()) return 2;
  if (find(options, {}, true) == nullptr) {
    std::printf("no operator for CUDA was registered\n");
    return 2;
  }
  for (int64_t bits = 1; bits <= 5; ++bits) {
    for (const int64_t M : {1, 3}) {
      for (const bool half : {false, true}) {
        fake::Sizes s;
        s.bits = bits, s.M = M, s.half = half, s.offset = bits % 2 == 0, s.further = bits % 3 == 2;
        compare(options, s, [](fake::Node&) {});
        compare(options, s, [](fake::Node& node) { node.fed = {true, false, true, true, true}; });
        s.brain = !half, s.half = false;
        compare(options, s, [](fake::Node&) {});
        s.gather = true, s.half = half;
        compare(options, s, [](fake::Node&) {});
      }
    }
  }
  expect(streams_asked == 80, "streams", std::to_string(streams_asked));
  refuse(options, [](fake::Node& node) { node.fed[1] = true; }, "expected a constant");
  refuse(options, [](fake::Node& node) { node.inputs[2]->shape.dims[2] = 15; }, "alpha_1 shape");
  refuse(options, [](fake::Node& node) { node.info.attributes.erase("bits"); }, "attribute bits");
  refuse(options, [](fake::Node& node) { node.inputs[1]->data += 4; }, "codes address");
  refuse(options, [](fake::Node& node) { node.info.declared[0].dims.back() = 99; }, "A shape");
  expect(fake::alive == 0, "alive", std::to_string(fake::alive));
  return failures == 0 ? 0 : 1;
}
