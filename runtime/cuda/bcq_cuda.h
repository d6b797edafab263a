/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA kernels behind a plain C ABI: no ONNX Runtime type and no CUDA header appears here, so a custom op, PyTorch
 * through ctypes or a bare program can call them. Shapes, layout and arithmetic: ops/README.md. Callers have validated
 * every size and shape. All pointers of a problem are device addresses. Every call only puts work on the stream: nothing
 * is allocated, copied or waited for, so calls can be captured into a CUDA graph; the first launch of a kernel loads its
 * code, so launch it once before. Results are the same bits in every run.
 */
#ifndef BCQ_CUDA_H_
#define BCQ_CUDA_H_

#include <stddef.h>
#include <stdint.h>

#define BCQ_CUDA_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a struct or a function changes, so that a library of another version is refused by the number. */
enum { BCQ_CUDA_ABI = 2 };

enum { BCQ_CUDA_FLOAT32 = 0, BCQ_CUDA_FLOAT16 = 1, BCQ_CUDA_BFLOAT16 = 2 };

/* Y[m, n] = sum_k A[m, k] W[n, k]; all strides in elements. */
typedef struct BcqCudaMatMul {
  int64_t M;
  int64_t K;
  int64_t N;
  int64_t group_size;
  int32_t bits;           /* q, the planes that are read, the first ones: 1 to 8 */
  int32_t planes;         /* planes that codes hold, q or more; factors are those of q alone */
  int32_t type;           /* of A and Y, BCQ_CUDA_* */
  int32_t accuracy_level; /* 0 to 4, ops/README.md */
  const void* a;          /* [M, K] */
  int64_t a_stride;
  void* y; /* [M, N] */
  int64_t y_stride;
  const uint32_t* codes;      /* [T, C, planes, 16], at a multiple of 16 bytes */
  const uint16_t* alpha_1;    /* float16 [T, G, 16], at a multiple of 8 bytes, as the next two */
  const uint16_t* alpha_rest; /* float16 [T, G, q-1, 16]; NULL when q = 1 */
  const uint16_t* offset;     /* float16 [T, G, 16], or NULL */
} BcqCudaMatMul;

/* Y[i, :] = W[indices[i], :]. An index outside [-N, N-1] gives a row of NaN: a stream cannot report it. */
typedef struct BcqCudaGather {
  int64_t count;
  int64_t K;
  int64_t N;
  int64_t group_size;
  int32_t bits;
  int32_t planes;
  int32_t type; /* of Y, BCQ_CUDA_* */
  int32_t index_is_int32;
  const void* indices; /* [count] */
  void* y;             /* [count, K] */
  const uint32_t* codes;
  const uint16_t* alpha_1;
  const uint16_t* alpha_rest;
  const uint16_t* offset;
} BcqCudaGather;

BCQ_CUDA_EXPORT int32_t bcq_cuda_abi(void);
/* Why nothing can run on the current device (no driver, no device, one that is too old), or NULL. */
BCQ_CUDA_EXPORT const char* bcq_cuda_unavailable(void);
/* "NVIDIA H200, sm_90, 132 multiprocessors" of the current device, or NULL. Valid until this thread's next call. */
BCQ_CUDA_EXPORT const char* bcq_cuda_device(void);
/* Names of the matmul kernels, in no order of preference; NULL outside the range. */
BCQ_CUDA_EXPORT const char* bcq_cuda_kernel_name(int32_t index);
/* The kernel for a problem on a device of compute capability `sm` (90 for 9.0) with so many multiprocessors; only sizes,
 * bits, type and level are read. */
BCQ_CUDA_EXPORT const char* bcq_cuda_select(const BcqCudaMatMul* problem, int32_t sm, int32_t processors);
/* Launches the problem on a stream (a cudaStream_t; NULL is the default stream) of the current device. `kernel` NULL:
 * the selected one. Returns NULL, or one line that says why nothing was launched, valid until this thread's next call. */
BCQ_CUDA_EXPORT const char* bcq_cuda_matmul(const BcqCudaMatMul* problem, const char* kernel, void* stream);
BCQ_CUDA_EXPORT const char* bcq_cuda_gather(const BcqCudaGather* problem, void* stream);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* BCQ_CUDA_H_ */
