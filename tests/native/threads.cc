// SPDX-License-Identifier: Apache-2.0
// Many threads multiply by the same weights at once, each with helpers of its own, and every result must have the bits
// of a thread alone. Built with ThreadSanitizer by `make tsan`, and without it as an ordinary test.
// Usage: threads CALLS. Prints "N products, M wrong" and exits with 1 if M is not 0.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/bcq_core.h"

namespace {

constexpr int kCallers = 16;
constexpr size_t kHelpers = 2;
constexpr int64_t kRows = 200, kInputs = 416, kTokens = 5, kGroup = 64;
constexpr int32_t kBits = 3;

// Random codes and scaling factors with zero padding; alphas are halves of 0x2800 .. 0x2fff, about 0.03 to 0.12.
struct Weights {
  static constexpr int64_t kTiles = (kRows + 15) / 16, kChunks = kInputs / 32, kGroups = (kInputs + kGroup - 1) / kGroup;
  std::vector<uint32_t> codes = std::vector<uint32_t>(kTiles * kChunks * kBits * 16);
  std::vector<uint16_t> alpha_1 = std::vector<uint16_t>(kTiles * kGroups * 16);
  std::vector<uint16_t> alpha_rest = std::vector<uint16_t>(kTiles * kGroups * (kBits - 1) * 16);
  std::vector<uint16_t> offset = std::vector<uint16_t>(kTiles * kGroups * 16);

  Weights() {
    std::mt19937 random(1);
    const auto half = [&] { return uint16_t(0x2800 + random() % 0x800); };
    for (uint32_t& word : codes) word = random();
    for (auto* factors : {&alpha_1, &alpha_rest, &offset}) {
      for (uint16_t& value : *factors) value = half();
    }
  }
};

// Runs all parts but the first on threads made for this call: nothing is shared with other callers.
void parallel_for(void*, BcqTask task, size_t parts, void* data) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t part; (part = next.fetch_add(1)) < parts;) task(data, part);
  };
  std::vector<std::thread> helpers;
  for (size_t i = 0; i < kHelpers; ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
}

struct Product {
  std::vector<float> a = std::vector<float>(kTokens * kInputs);
  std::vector<float> y = std::vector<float>(kTokens * kRows);
  std::vector<uint8_t> scratch;

  explicit Product(uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& value : a) value = normal(random);
  }

  void run(const Weights& w, const char* kernel, int32_t level, size_t parts) {
    BcqMatMulProblem p = {};
    p.M = kTokens, p.K = kInputs, p.N = kRows, p.group_size = kGroup, p.bits = kBits, p.accuracy_level = level;
    p.a = a.data(), p.a_stride = kInputs, p.y = y.data(), p.y_stride = kRows;
    p.codes = w.codes.data(), p.alpha_1 = w.alpha_1.data(), p.alpha_rest = w.alpha_rest.data(), p.offset = w.offset.data();
    scratch.resize(bcq_matmul_scratch_bytes(&p, kernel) + 64);
    void* aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t(63));
    const char* error = bcq_matmul(&p, kernel, aligned, parts, parts > 1 ? parallel_for : nullptr, nullptr);
    if (error != nullptr) std::fprintf(stderr, "%s: %s\n", kernel, error), std::exit(2);
  }
};

bool runs_here(const char* kernel, int index) {
  return kernel != nullptr && (bcq_kernel_flags("BcqMatMul", index) & ~bcq_detected_cpu_flags()) == 0;
}

// The accuracy level that a kernel takes, from its name.
int32_t level_of(const std::string& kernel) {
  const auto ends = [&](const char* end) { return kernel.size() > std::strlen(end) && kernel.rfind(end) == kernel.size() - std::strlen(end); };
  return ends("_t8") ? 4 : ends("_exact") ? 1 : 0;
}

int count_wrong(const Weights& weights, const char* kernel, int calls) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      Product alone(uint32_t(caller + 1)), together(uint32_t(caller + 1));
      alone.run(weights, kernel, level_of(kernel), 1);
      for (int i = 0; i < calls; ++i) {
        together.run(weights, kernel, level_of(kernel), size_t(i % 4 + 1));
        wrong += std::memcmp(alone.y.data(), together.y.data(), alone.y.size() * sizeof(float)) != 0;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  return wrong;
}

}  // namespace

int main(int count, char** arguments) {
  const int calls = count > 1 ? std::atoi(arguments[1]) : 20;
  const Weights weights;
  int wrong = 0, kernels = 0;
  for (int32_t i = 0; i < bcq_kernel_count("BcqMatMul"); ++i) {
    const char* kernel = bcq_kernel_name("BcqMatMul", i);
    if (!runs_here(kernel, i)) continue;
    wrong += count_wrong(weights, kernel, calls);
    ++kernels;
  }
  std::printf("%d products, %d wrong\n", kernels * kCallers * calls, wrong);
  return wrong != 0;
}
