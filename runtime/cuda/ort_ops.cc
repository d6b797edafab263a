// SPDX-License-Identifier: Apache-2.0
#include "cuda/ort_ops.h"

#include <algorithm>

#include "cuda/ort_weight.h"
#include "ort/callbacks.h"

namespace bcq::ort {
namespace {

constexpr const char* kProvider = "CUDAExecutionProvider";

const char* provider(const OrtCustomOp*) { return kProvider; }

// What kernels of both operators share: their registration, and the stream of a run.
class CudaKernel {
 public:
  CudaKernel(const CustomOp& registration, const OrtKernelInfo* info)
      : op_(static_cast<const CudaOp&>(registration)),
        calls_(*registration.calls),
        weight_(calls_, info, *registration.op) {}

 protected:
  Tensor first_input(const OrtKernelContext* context, const char* name) const {
    const OrtValue* value = nullptr;
    check(calls_, calls_.KernelContext_GetInput(context, 0, &value));
    const Tensor tensor(calls_, value);
    check_fed(name, tensor, op_.first_input, bytes_of(op_.first_input));
    return tensor;
  }

  void* stream(const OrtKernelContext* context) const {
    void* found = nullptr;
    check(calls_, op_.KernelContext_GetGPUComputeStream(context, &found));
    return found;
  }

  void* output(OrtKernelContext* context, const int64_t* dims, size_t rank) const {
    OrtValue* value = nullptr;
    check(calls_, calls_.KernelContext_GetOutput(context, 0, dims, rank, &value));
    void* data = nullptr;
    check(calls_, calls_.GetTensorMutableData(value, &data));
    return data;
  }

  static void refuse_launch(const char* failure) {
    if (failure != nullptr) throw Refusal{failure};
  }

  const CudaOp& op_;
  const Calls& calls_;
  CudaWeight weight_;
};

int32_t cuda_type(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return BCQ_CUDA_FLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return BCQ_CUDA_BFLOAT16;
    default: return BCQ_CUDA_FLOAT32;
  }
}

class CudaMatMul : CudaKernel {
 public:
  CudaMatMul(const CustomOp& registration, const OrtKernelInfo* info) : CudaKernel(registration, info) {
    const int64_t declared = declared_last_dimension(calls_, info, 0);
    if (declared >= 0) refuse_if(check_activation(weight_.attributes(), {&declared, 1}));
  }

  void run(OrtKernelContext* context) const {
    const Tensor a = first_input(context, "A");
    refuse_if(check_activation(weight_.attributes(), a.shape()));
    BcqCudaMatMul problem = {};
    weight_.fill(calls_, context, problem);
    const Shape shape = a.shape();
    problem.M = checked_product(shape.dims, shape.rank - 1, std::max(problem.K, problem.N) * int64_t(sizeof(float)));
    if (problem.M < 0) throw Refusal{"A shape: the product of its dimensions overflows. Feed fewer rows."};
    problem.type = cuda_type(op_.first_input);
    problem.accuracy_level = int32_t(weight_.attributes().accuracy_level);
    problem.a = a.data<void>();
    problem.a_stride = problem.K;
    problem.y_stride = problem.N;
    int64_t dims[Tensor::kMaxRank];
    std::copy(shape.dims, shape.dims + shape.rank, dims);
    dims[shape.rank - 1] = problem.N;
    problem.y = output(context, dims, shape.rank);
    if (problem.M != 0) refuse_launch(op_.part->matmul(&problem, nullptr, stream(context)));
  }
};

class CudaGather : CudaKernel {
 public:
  using CudaKernel::CudaKernel;

  void run(OrtKernelContext* context) const {
    const Tensor indices = first_input(context, "indices");
    BcqCudaGather problem = {};
    weight_.fill(calls_, context, problem);
    const Shape shape = indices.shape();
    problem.count = checked_product(shape.dims, shape.rank, problem.K * int64_t(sizeof(float)));
    if (problem.count < 0) throw Refusal{"indices shape: the size of the output overflows. Feed fewer indices."};
    problem.type = BCQ_CUDA_FLOAT32;
    problem.index_is_int32 = op_.first_input == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    problem.indices = indices.data<void>();
    int64_t dims[Tensor::kMaxRank + 1];
    std::copy(shape.dims, shape.dims + shape.rank, dims);
    dims[shape.rank] = problem.K;
    problem.y = output(context, dims, shape.rank + 1);
    if (problem.count != 0) refuse_launch(op_.part->gather(&problem, stream(context)));
  }
};

// The registration `op` on the CUDA provider.
CudaOp on_cuda(const OrtApi* api, const CustomOp& op, const char* last_dimension, bool keeps_last_input) {
  CudaOp made = {};
  static_cast<CustomOp&>(made) = op;
  made.GetExecutionProviderType = provider;
  made.last_dimension = last_dimension;
  made.keeps_last_input = keeps_last_input;
  made.part = cuda_part();
  void* const* slots = reinterpret_cast<void* const*>(api);
#define BCQ_ORT_SLOT(position, Result, name, arguments) made.name = reinterpret_cast<Result(*) arguments>(slots[position]);
#include "cuda/slots.inc"
#undef BCQ_ORT_SLOT
  return made;
}

}  // namespace

std::vector<CudaOp> cuda_ops(const OrtApi* api, const Calls& calls, const Settings& settings) {
  std::vector<CudaOp> made;
  if (cuda_part() == nullptr) return made;
  for (const auto type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                          ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
    const CustomOp op = make_custom_op<CudaMatMul>(calls, settings, contract::kBcqMatMul, type, type);
    made.push_back(on_cuda(api, op, "N", false));
  }
  for (const auto type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32}) {
    const CustomOp op =
        make_custom_op<CudaGather>(calls, settings, contract::kBcqGather, type, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    made.push_back(on_cuda(api, op, "K", true));
  }
  return made;
}

}  // namespace bcq::ort
