// SPDX-License-Identifier: Apache-2.0
// BcqGather as a custom op: rows of a packed embedding as float32.
#include <algorithm>
#include <memory>

#include "kernels/bcq_gather/kernel.h"
#include "ort/callbacks.h"
#include "ort/custom_op.h"
#include "ort/profile.h"
#include "ort/threads.h"
#include "ort/weight.h"

namespace bcq::ort {
namespace {

void check_indices(const GatherProblem& p) {
  const int64_t at = bcq_gather_bad_index(&p);
  if (at < 0) return;
  const int64_t index =
      p.index_is_int32 ? static_cast<const int32_t*>(p.indices)[at] : static_cast<const int64_t*>(p.indices)[at];
  throw Refusal{"indices: got " + std::to_string(index) + " at position " + std::to_string(at) + ", expected " +
                std::to_string(-p.N) + " to " + std::to_string(p.N - 1) + ". Feed token ids of this model."};
}

class Gather {
 public:
  Gather(const CustomOp& registration, const OrtKernelInfo* info)
      : op_(registration),
        calls_(*registration.calls),
        weight_(calls_, info, *registration.op),
        kernel_(select(weight_.attributes())),
        profile_(profile_of(registration, info, weight_.attributes(), kernel_, false)) {}

  void run(OrtKernelContext* context) const {
    const Stopwatch stopwatch(profile_.get());
    const OrtValue* value = nullptr;
    check(calls_, calls_.KernelContext_GetInput(context, 0, &value));
    const Tensor indices(calls_, value);
    check_fed("indices", indices, op_.first_input, is_int32() ? sizeof(int32_t) : sizeof(int64_t));
    GatherProblem problem = problem_of(indices, weight_.pointers(calls_, context));
    check_indices(problem);
    problem.y = output_of(context, indices.shape());
    Threads threads{calls_, context};
    const char* failure = bcq_gather(&problem, kernel_, 0, parallel_for, &threads);
    if (failure != nullptr) throw Refusal{failure};
    stopwatch.stop(problem.count);
  }

 private:
  bool is_int32() const { return op_.first_input == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32; }

  static GatherProblem sizes_of(const Attributes& attributes) {
    GatherProblem p = {};
    p.K = attributes.K;
    p.N = attributes.N;
    p.group_size = attributes.group_size;
    p.bits = int32_t(attributes.bits);
    p.planes = attributes.planes;
    return p;
  }

  static const char* select(const Attributes& attributes) {
    const GatherProblem p = sizes_of(attributes);
    return bcq_select_gather(&p, bcq_cpu_flags());
  }

  GatherProblem problem_of(const Tensor& indices, const WeightPointers& weight) const {
    GatherProblem p = sizes_of(weight_.attributes());
    p.count = checked_product(indices.shape().dims, indices.shape().rank, p.K * int64_t(sizeof(float)));
    if (p.count < 0) throw Refusal{"indices shape: the size of the output overflows. Feed fewer indices."};
    p.index_is_int32 = is_int32();
    p.indices = indices.data<void>();
    p.codes = weight.codes;
    p.alpha_1 = weight.alpha_1;
    p.alpha_rest = weight.alpha_rest;
    p.offset = weight.offset;
    return p;
  }

  // The output [..., K] for indices [...].
  float* output_of(OrtKernelContext* context, Shape indices) const {
    int64_t dims[Tensor::kMaxRank + 1];
    std::copy(indices.dims, indices.dims + indices.rank, dims);
    dims[indices.rank] = weight_.attributes().K;
    OrtValue* output = nullptr;
    check(calls_, calls_.KernelContext_GetOutput(context, 0, dims, indices.rank + 1, &output));
    void* data = nullptr;
    check(calls_, calls_.GetTensorMutableData(output, &data));
    return static_cast<float*>(data);
  }

  const CustomOp& op_;
  const Calls& calls_;
  Weight weight_;
  const char* kernel_;
  std::unique_ptr<Profile> profile_;
};

}  // namespace

CustomOp gather_op(const Calls& calls, const Settings& settings, ONNXTensorElementDataType index_type) {
  CustomOp op = make_custom_op<Gather>(calls, settings, contract::kBcqGather, index_type,
                                       ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  op.last_dimension = "K";
  op.keeps_last_input = true;
  return op;
}

}  // namespace bcq::ort
