// SPDX-License-Identifier: Apache-2.0
// Counts what the library allocates while a node runs; it must be nothing: scratch and output come from ONNX Runtime.
// Usage: allocations FOLDER. Prints one line a node and exits with 1 if any run allocated.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "core/bcq_core.h"
#include "fake_node.h"

extern "C" bcq::ort::OrtStatus* RegisterCustomOps(bcq::ort::OrtSessionOptions* options,
                                                  const bcq::ort::OrtApiBase* base);

namespace {

using namespace bcq::ort;

int64_t allocations = 0;
bool counting = false;

// While one lives the stand-in is at work, and what it allocates is not counted.
class Outside {
 public:
  Outside() : before_(counting) { counting = false; }
  ~Outside() { counting = before_; }

 private:
  bool before_;
};

template <int slot, typename Result, typename... Arguments>
struct Wrapped {
  static inline Result (*real)(Arguments...) = nullptr;
  static Result call(Arguments... arguments) {
    const Outside outside;
    return real(arguments...);
  }
};

template <int slot, typename Result, typename... Arguments>
void* wrap(Result (*)(Arguments...), void* real) {
  using Function = Wrapped<slot, Result, Arguments...>;
  Function::real = reinterpret_cast<Result (*)(Arguments...)>(real);
  return reinterpret_cast<void*>(&Function::call);
}

// Parts are the library's own work: they run here, and are counted.
OrtStatus* parallel_for(const OrtKernelContext*, void (*task)(void*, size_t), size_t total, size_t, void* data) {
  for (size_t part = 0; part < total; ++part) task(data, part);
  return nullptr;
}

// The stand-in's allocator, without its own bookkeeping in the count.
struct Borrowed : OrtAllocator {
  OrtAllocator* real = nullptr;
};

void* borrow(OrtAllocator* self, size_t bytes) {
  const Outside outside;
  OrtAllocator* real = static_cast<Borrowed*>(self)->real;
  return real->Alloc(real, bytes);
}

void give_back(OrtAllocator* self, void* block) {
  const Outside outside;
  OrtAllocator* real = static_cast<Borrowed*>(self)->real;
  real->Free(real, block);
}

void* real_get_allocator;
void* real_release_allocator;

OrtStatus* get_allocator(const OrtKernelInfo* info, OrtMemType type, OrtAllocator** out) {
  const Outside outside;
  Borrowed* borrowed = new Borrowed;
  borrowed->Alloc = borrow;
  borrowed->Free = give_back;
  *out = borrowed;
  return reinterpret_cast<decltype(&get_allocator)>(real_get_allocator)(info, type, &borrowed->real);
}

void release_allocator(OrtAllocator* allocator) {
  const Outside outside;
  Borrowed* borrowed = static_cast<Borrowed*>(allocator);
  reinterpret_cast<decltype(&release_allocator)>(real_release_allocator)(borrowed->real);
  delete borrowed;
}

constexpr size_t kSlots = 300;

size_t slot_of(const char* wanted) {
#define BCQ_ORT_SLOT(position, Result, name, arguments) if (std::strcmp(#name, wanted) == 0) return position;
#include "ort/slots.inc"
#undef BCQ_ORT_SLOT
  return 0;
}

const OrtApi* counted_api(uint32_t version) {
  static void* slots[kSlots];
  void* const* real = reinterpret_cast<void* const*>(fake::base()->GetApi(version));
  if (real == nullptr) return nullptr;
  Calls calls = {};
#define BCQ_ORT_SLOT(position, Result, name, arguments) slots[position] = wrap<position>(calls.name, real[position]);
#include "ort/slots.inc"
#undef BCQ_ORT_SLOT
  real_get_allocator = real[slot_of("KernelInfoGetAllocator")];
  real_release_allocator = real[slot_of("ReleaseAllocator")];
  slots[slot_of("KernelInfoGetAllocator")] = reinterpret_cast<void*>(&get_allocator);
  slots[slot_of("ReleaseAllocator")] = reinterpret_cast<void*>(&release_allocator);
  slots[slot_of("KernelContext_ParallelFor")] = reinterpret_cast<void*>(&parallel_for);
  return reinterpret_cast<const OrtApi*>(slots);
}

const char* version() { return "1.21.0 (counted)"; }

int failed(const std::string& scene, const std::string& why) {
  std::printf("FAULT %s: %s\n", scene.c_str(), why.c_str());
  return 1;
}

const OrtCustomOp* operator_of(const fake::Sizes& sizes, const fake::Node& node, const OrtSessionOptions& options) {
  for (const OrtCustomOp* op : options.domains.at(0)->ops) {
    const bool named = std::strcmp(op->GetName(op), sizes.gather ? "BcqGather" : "BcqMatMul") == 0;
    if (named && op->GetInputType(op, 0) == node.inputs[0]->shape.type) return op;
  }
  return nullptr;
}

// What three runs of a kernel allocate after a first one, whose count goes to `first`; -1 when one fails.
int64_t runs(const OrtCustomOp* op, void* kernel, fake::Node& node, int64_t& first) {
  OrtKernelContext context;
  for (const auto& input : node.inputs) context.inputs.push_back(input.get());
  context.output.shape.type = op->GetOutputType(op, 0);
  allocations = 0;
  for (int i = 0; i < 4; ++i) {
    if (i == 1) first = std::exchange(allocations, 0);
    counting = true;
    const OrtStatus* status = op->KernelComputeV2(kernel, &context);
    counting = false;
    if (status != nullptr) return -1;
  }
  return allocations;
}

int scene(const std::string& name, const fake::Sizes& sizes, int64_t level, bool fed, OrtSessionOptions& options) {
  static const OrtApiBase base = {counted_api, version};
  if (RegisterCustomOps(&options, &base) != nullptr) return failed(name, "not registered");
  fake::Node node = fake::healthy(sizes, 1);
  const OrtCustomOp* op = operator_of(sizes, node, options);
  if (!sizes.gather) node.info.attributes["accuracy_level"].number = level;
  for (size_t i = 2; i < 5; ++i) node.fed[i] = fed;
  for (size_t i = 0; i < 5; ++i) node.info.constants.push_back(node.fed[i] ? nullptr : node.inputs[i].get());
  void* kernel = nullptr;
  if (op->CreateKernelV2(op, counted_api(21), &node.info, &kernel) != nullptr) return failed(name, "not created");
  int64_t first = 0;
  const int64_t count = runs(op, kernel, node, first);
  op->KernelDestroy(kernel);
  // A profile makes room for a new number of rows in the first run, which shows that the count sees the library.
  if ((first > 0) != (options.entries.count("bcq.profile") != 0)) return failed(name, "a first run that counts wrong");
  std::printf("%s: %lld allocations in 3 runs\n", name.c_str(), static_cast<long long>(count));
  return count == 0 ? 0 : failed(name, "a run allocates or fails");
}

int scenes(const fake::Sizes& sizes, const std::string& name, const std::string& folder) {
  int faults = 0;
  for (const char* weights : {"mapped", "resident"}) {
    for (const bool profiled : {false, true}) {
      OrtSessionOptions options;
      options.entries["bcq.weights"] = weights;
      if (profiled) options.entries["bcq.profile"] = folder + "/profile.jsonl";
      const std::string title = name + " " + weights + (profiled ? " profiled" : "");
      faults += scene(title, sizes, 0, false, options);
      faults += scene(title + " fed", sizes, 0, true, options);
      for (const int64_t level : {1, 4}) {
        faults += scene(title + " level " + std::to_string(level), sizes, level, false, options);
      }
    }
  }
  return faults;
}

}  // namespace

void* operator new(size_t bytes) {
  allocations += counting;
  void* block = std::malloc(bytes == 0 ? 1 : bytes);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }

int main(int count, char** arguments) {
  if (count != 2) return std::fprintf(stderr, "Usage: allocations FOLDER\n"), 2;
  int faults = 0;
  fake::Sizes sizes;
  sizes.N = 300;
  sizes.K = 288;
  for (const bool gather : {false, true}) {
    for (const bool half : {false, true}) {
      for (const int64_t rows : {1, 3, 70}) {
        sizes.gather = gather;
        sizes.half = half;
        sizes.M = rows;
        const std::string type = gather ? (half ? "gather int32" : "gather") : (half ? "matmul float16" : "matmul");
        faults += scenes(sizes, type + " M=" + std::to_string(rows), arguments[1]);
      }
    }
  }
  return faults == 0 ? 0 : 1;
}
