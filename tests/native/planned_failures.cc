// SPDX-License-Identifier: Apache-2.0
// Every call into ONNX Runtime fails once, and every allocation of the library once: each time there is a message or
// the right result, never a crash, and nothing is left behind. Usage: planned_failures FOLDER. Prints one line a scene.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>

#include "fake_node.h"

namespace {

// Allocations of the whole program count down from here and fail when they reach zero; negative: never.
int64_t no_memory_in = -1;

void* take(size_t bytes) {
  if (no_memory_in >= 0 && no_memory_in-- == 0) throw std::bad_alloc();
  void* block = std::malloc(bytes == 0 ? 1 : bytes);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

int faults = 0;

void fault(const std::string& scene, int64_t at, const std::string& what) {
  std::printf("FAULT %s at %lld: %s\n", scene.c_str(), static_cast<long long>(at), what.c_str());
  ++faults;
}

// Runs `scene` with its n-th chance to fail taken, for n = 0, 1, 2 ... until a run needs no more chances.
void every_failure(const std::string& name, int64_t& countdown, const std::function<std::string()>& scene) {
  const std::string right = scene();
  int64_t at = 0, told = 0;
  for (bool spent = true; spent; ++at) {
    const int64_t before = fake::alive;
    countdown = at;
    const std::string result = scene();
    spent = countdown < 0;
    countdown = -1;
    if (result != right && result.rfind("refused: ", 0) != 0) fault(name, at, "a wrong result");
    if (fake::alive != before) fault(name, at, "something was left behind");
    told += result != right;
  }
  std::printf("%s: %lld chances, %lld told, the others changed nothing\n", name.c_str(), static_cast<long long>(at - 1),
              static_cast<long long>(told));
}

std::string as_text(const fake::Outcome& outcome) {
  if (!outcome.failure.empty()) return "refused: " + outcome.failure;
  return std::string(outcome.output.begin(), outcome.output.end());
}

// The node is made beforehand: only what the library allocates may fail.
void node_scenes(const std::string& name, const fake::Sizes& sizes, const std::string& weights) {
  bcq::ort::OrtSessionOptions options;
  if (!weights.empty()) options.entries["bcq.weights"] = weights;
  std::string why;
  const bcq::ort::OrtCustomOp* op = fake::registered(sizes, options, why);
  if (op == nullptr) return fault(name, -1, "not registered: " + why);
  fake::Node node = fake::healthy(sizes, 1);
  const auto scene = [&] { return as_text(fake::run(op, node, sizes)); };
  every_failure(name + ", calls", fake::fail_in, scene);
  for (size_t i = 2; i < 5; ++i) node.fed[i] = true;
  every_failure(name + ", factors fed", fake::fail_in, scene);
}

// Shapes and types that ONNX Runtime would not pass on are refused by the library all the same.
void odd_input(const std::string& name, const fake::Sizes& sizes, size_t input, const std::string& word,
               const std::function<void(bcq::ort::OrtValue&)>& change) {
  bcq::ort::OrtSessionOptions options;
  std::string why;
  const bcq::ort::OrtCustomOp* op = fake::registered(sizes, options, why);
  fake::Node node = fake::healthy(sizes, 1);
  change(*node.inputs[input]);
  const fake::Outcome outcome = fake::run(op, node, sizes);
  if (outcome.failure.find(word) == std::string::npos) fault(name, int64_t(input), "got '" + outcome.failure + "'");
}

void odd_inputs(const std::string& name, const fake::Sizes& sizes) {
  const auto of_type_int32 = [](bcq::ort::OrtValue& value) {
    fake::resize(value, bcq::ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, value.shape.dims);
  };
  const auto of_rank_17 = [](bcq::ort::OrtValue& value) {
    value.shape.dims.insert(value.shape.dims.begin(), 17 - value.shape.dims.size(), 1);
  };
  // Only a dishonest caller has these: the tensor is not as large as it says.
  const auto huge = [](bcq::ort::OrtValue& value) {
    value.shape.dims.insert(value.shape.dims.begin(), 2, int64_t(1) << 40);
  };
  for (size_t i = 1; i < 5; ++i) odd_input(name + " type", sizes, i, " type: got", of_type_int32);
  odd_input(name + " rank", sizes, 0, "expected at most 16", of_rank_17);
  odd_input(name + " overflow", sizes, 0, "overflows", huge);
}

// A profile of another name each time makes another registration; equal ones are made once and kept.
void registration_scene(const std::string& folder) {
  int count = 0;
  every_failure("registration", fake::fail_in, [&] {
    bcq::ort::OrtSessionOptions options;
    options.entries["bcq.profile"] = folder + "/" + std::to_string(count++) + ".jsonl";
    std::string why;
    const bcq::ort::OrtCustomOp* op = fake::registered({}, options, why);
    return op != nullptr ? std::string("registered") : "refused: " + why;
  });
}

// The stand-in allocates too, with the same operator new; what it cannot pass on is counted as told.
void memory_scene(const std::string& name, const fake::Sizes& sizes) {
  bcq::ort::OrtSessionOptions options;
  std::string why;
  const bcq::ort::OrtCustomOp* op = fake::registered(sizes, options, why);
  fake::Node node = fake::healthy(sizes, 1);
  fake::run(op, node, sizes);
  int64_t at = 0;
  for (bool spent = true; spent; ++at) {
    no_memory_in = at;
    try {
      fake::run(op, node, sizes);
    } catch (const std::bad_alloc&) {  // thrown by the stand-in, in front of or behind the library
    }
    spent = no_memory_in < 0;
    no_memory_in = -1;
  }
  std::printf("%s: %lld allocations failed one by one\n", name.c_str(), static_cast<long long>(at - 1));
}

}  // namespace

void* operator new(size_t bytes) { return take(bytes); }
void* operator new[](size_t bytes) { return take(bytes); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }

int main(int count, char** arguments) {
  if (count != 2) return std::fprintf(stderr, "Usage: planned_failures FOLDER\n"), 2;
  registration_scene(arguments[1]);
  fake::Sizes sizes;
  node_scenes("matmul", sizes, "mapped");
  node_scenes("matmul resident", sizes, "resident");
  memory_scene("matmul memory", sizes);
  odd_inputs("matmul", sizes);
  sizes.half = true;
  node_scenes("matmul float16", sizes, "");
  sizes.gather = true;
  node_scenes("gather int32", sizes, "");
  sizes.half = false;
  node_scenes("gather", sizes, "");
  memory_scene("gather memory", sizes);
  odd_inputs("gather", sizes);
  // Large enough for more than one part, so that handing them to threads may fail too.
  sizes.K = 2048, sizes.N = 1024, sizes.M = 40;
  node_scenes("large gather", sizes, "");
  sizes.gather = false, sizes.M = 2;
  node_scenes("large matmul", sizes, "");
  return faults == 0 ? 0 : 1;
}
