// SPDX-License-Identifier: Apache-2.0
// BcqMatMul as a custom op: validate, borrow scratch, run the kernel on ONNX Runtime's own threads.
#include <algorithm>
#include <memory>

#include "kernels/bcq_matmul/kernel.h"
#include "ort/callbacks.h"
#include "ort/custom_op.h"
#include "ort/profile.h"
#include "ort/resident.h"
#include "ort/threads.h"
#include "ort/weight.h"

namespace bcq::ort {
namespace {

// Scratch from ONNX Runtime's arena, given back when the scope ends; aligned to a cache line.
class Scratch {
 public:
  Scratch(OrtAllocator* allocator, size_t bytes) : allocator_(allocator) {
    if (bytes == 0) return;
    block_ = allocator->Alloc(allocator, bytes + kAlignment);
    if (block_ == nullptr) throw NoMemory{bytes + kAlignment, "Feed fewer rows or free memory."};
  }
  ~Scratch() {
    if (block_ != nullptr) allocator_->Free(allocator_, block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block_) + kAlignment - 1) & ~(kAlignment - 1));
  }

 private:
  static constexpr uintptr_t kAlignment = 64;
  OrtAllocator* allocator_;
  void* block_ = nullptr;
};

// The allocator of the node's execution provider.
class Allocator {
 public:
  Allocator(const Calls& calls, const OrtKernelInfo* info) : calls_(&calls) {
    check(calls, calls.KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator_));
  }
  Allocator(Allocator&& other) noexcept : calls_(other.calls_), allocator_(other.allocator_) {
    other.allocator_ = nullptr;
  }
  ~Allocator() {
    if (allocator_ != nullptr) calls_->ReleaseAllocator(allocator_);
  }
  OrtAllocator* get() const { return allocator_; }

 private:
  const Calls* calls_;
  OrtAllocator* allocator_ = nullptr;
};

class MatMul {
 public:
  MatMul(const CustomOp& registration, const OrtKernelInfo* info)
      : op_(registration),
        calls_(*registration.calls),
        weight_(calls_, info, *registration.op),
        kernel_(select(registration, weight_.attributes())),
        allocator_(calls_, info) {
    // A graph that declares another size would fail at its first run: say so now, before anything is copied.
    const int64_t declared = declared_last_dimension(calls_, info, 0);
    if (declared >= 0) refuse_if(check_activation(weight_.attributes(), {&declared, 1}));
    resident_ = resident_copy();
    profile_ = profile_of(registration, info, weight_.attributes(), kernel_, resident_ != nullptr);
  }

  void run(OrtKernelContext* context) const {
    const Stopwatch stopwatch(profile_.get());
    const OrtValue* value = nullptr;
    check(calls_, calls_.KernelContext_GetInput(context, 0, &value));
    const Tensor a(calls_, value);
    check_fed("A", a, op_.first_input, bytes_of(op_.first_input));
    refuse_if(check_activation(weight_.attributes(), a.shape()));
    MatMulProblem problem = problem_of(a, weight_.pointers(calls_, context));
    problem.y = output_of(context, a.shape());
    if (problem.M == 0) return;
    const Scratch scratch(allocator_.get(), bcq_matmul_scratch_bytes(&problem, kernel_));
    Threads threads{calls_, context};
    const char* failure = bcq_matmul(&problem, kernel_, scratch.data(), 0, parallel_for, &threads);
    if (failure != nullptr) throw Refusal{failure};
    stopwatch.stop(problem.M);
  }

 private:
  // Everything but M and pointers.
  static MatMulProblem sizes_of(const CustomOp& registration, const Attributes& attributes) {
    MatMulProblem p = {};
    p.M = 1;
    p.K = attributes.K;
    p.N = attributes.N;
    p.group_size = attributes.group_size;
    p.bits = int32_t(attributes.bits);
    p.planes = attributes.planes;
    p.a_is_half = registration.first_input == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    p.a_is_brain = registration.first_input == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    p.accuracy_level = int32_t(attributes.accuracy_level);
    p.a_stride = p.K;
    p.y_stride = p.N;
    return p;
  }

  // One kernel serves every M of a node: a row alone then has the bits that it has in a batch.
  static const char* select(const CustomOp& registration, const Attributes& attributes) {
    const MatMulProblem p = sizes_of(registration, attributes);
    return bcq_select_matmul(&p, bcq_cpu_flags());
  }

  // Null: the settings say mapped, or nothing is gained, or a copy that was no order would need too much memory.
  std::shared_ptr<const uint32_t> resident_copy() const {
    const Weights weights = op_.settings->weights;
    if (weights == Weights::mapped) return nullptr;
    if (weights == Weights::automatic && bcq_matmul_has_own_order(kernel_) == 0) return nullptr;
    MatMulProblem p = sizes_of(op_, weight_.attributes());
    p.codes = weight_.codes();
    const bool sparing = weights == Weights::automatic;
    auto codes = resident_codes(p, kernel_, weight_.attributes().code_hash, sparing);
    if (codes == nullptr && !sparing) {
      throw NoMemory{resident_bytes(p), "A resident copy of the codes needs it: set bcq.weights to mapped."};
    }
    return codes;
  }

  MatMulProblem problem_of(const Tensor& a, const WeightPointers& weight) const {
    const Shape shape = a.shape();
    MatMulProblem p = sizes_of(op_, weight_.attributes());
    p.M = checked_product(shape.dims, shape.rank - 1, std::max(p.K, p.N) * int64_t(sizeof(float)));
    if (p.M < 0) throw Refusal{"A shape: the product of its dimensions overflows. Feed fewer rows."};
    p.a = a.data<void>();
    p.codes = resident_ == nullptr ? weight.codes : resident_.get();
    p.resident = resident_ != nullptr;
    if (p.resident != 0) p.planes = p.bits;  // a copy has no others
    p.alpha_1 = weight.alpha_1;
    p.alpha_rest = weight.alpha_rest;
    p.offset = weight.offset;
    return p;
  }

  // The output [..., N] for an activation [..., K].
  void* output_of(OrtKernelContext* context, Shape a) const {
    int64_t dims[Tensor::kMaxRank];
    std::copy(a.dims, a.dims + a.rank, dims);
    dims[a.rank - 1] = weight_.attributes().N;
    OrtValue* output = nullptr;
    check(calls_, calls_.KernelContext_GetOutput(context, 0, dims, a.rank, &output));
    void* data = nullptr;
    check(calls_, calls_.GetTensorMutableData(output, &data));
    return data;
  }

  const CustomOp& op_;
  const Calls& calls_;
  Weight weight_;
  const char* kernel_;
  Allocator allocator_;
  std::shared_ptr<const uint32_t> resident_;  // null: the kernel reads the mapped codes
  std::unique_ptr<Profile> profile_;
};

}  // namespace

CustomOp matmul_op(const Calls& calls, const Settings& settings, ONNXTensorElementDataType type) {
  CustomOp op = make_custom_op<MatMul>(calls, settings, contract::kBcqMatMul, type, type);
  op.last_dimension = "N";
  op.keeps_last_input = false;
  return op;
}

}  // namespace bcq::ort
