/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels behind a plain C ABI: no ONNX Runtime type appears here, so a custom op, an execution provider, ctypes
 * or a bare program can call them. Shapes and layout: ops/README.md. Callers have validated every size and shape.
 */
#ifndef BCQ_CORE_H_
#define BCQ_CORE_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define BCQ_EXPORT __declspec(dllexport)
#else
#define BCQ_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What a CPU can do. A kernel names the flags that it needs; selection takes the flags as an argument. */
enum {
  BCQ_CPU_AVX2 = 1 << 0,        /* AVX2, FMA and F16C together */
  BCQ_CPU_AVX512 = 1 << 1,      /* AVX-512 F, BW, DQ, VL */
  BCQ_CPU_AVX512VBMI = 1 << 2,
  BCQ_CPU_AVX512VNNI = 1 << 3,
  BCQ_CPU_AVX512BF16 = 1 << 4,
  BCQ_CPU_NEON = 1 << 5,
  BCQ_CPU_DOTPROD = 1 << 6
};

/* Y[m, n] = sum_k A[m, k] W[n, k]; all strides in elements. */
typedef struct BcqMatMulProblem {
  int64_t M;
  int64_t K;
  int64_t N;
  int64_t group_size;
  int32_t bits;
  int32_t a_is_half;      /* 0: A and Y are float32; 1: both float16 */
  int32_t accuracy_level; /* 0 to 4, ops/README.md */
  int32_t resident;       /* 0: codes as on disk; 1: as bcq_matmul_make_resident wrote them for this kernel */
  const void* a; /* [M, K] */
  int64_t a_stride;
  void* y; /* [M, N] */
  int64_t y_stride;
  const uint32_t* codes;      /* [T, C, planes, 16]; in the order of resident, see above */
  const uint16_t* alpha_1;    /* float16 [T, G, 16] */
  const uint16_t* alpha_rest; /* float16 [T, G, q-1, 16]; NULL when q = 1 */
  const uint16_t* offset;     /* float16 [T, G, 16], or NULL */
  int64_t planes;             /* that codes hold, of which the first `bits` are read; 0: as many as bits */
  int64_t a_is_brain;         /* 1: A and Y are bfloat16, and a_is_half is 0; bcq_matmul shows kernels float32 */
} BcqMatMulProblem;

/* Y[i, :] = W[indices[i], :] as float32. */
typedef struct BcqGatherProblem {
  int64_t count;
  int64_t K;
  int64_t N;
  int64_t group_size;
  int32_t bits;
  int32_t index_is_int32; /* 0: int64 indices */
  const void* indices;    /* [count], each in [-N, N-1] */
  float* y;               /* [count, K] */
  const uint32_t* codes;
  const uint16_t* alpha_1;
  const uint16_t* alpha_rest;
  const uint16_t* offset;
  int64_t planes; /* as in BcqMatMulProblem */
} BcqGatherProblem;

/* Runs task(data, part) for every part in [0, parts), in any order, on any threads, and returns when all are done. */
typedef void (*BcqTask)(void* data, size_t part);
typedef void (*BcqParallelFor)(void* pool, BcqTask task, size_t parts, void* data);

/* The flags of this machine, lowered by the environment variable BCQ_ISA; 0 when BCQ_ISA is wrong. */
BCQ_EXPORT uint32_t bcq_cpu_flags(void);
/* The flags of this machine whatever BCQ_ISA says. */
BCQ_EXPORT uint32_t bcq_detected_cpu_flags(void);
/* Why BCQ_ISA is refused (unknown name, or more than this CPU has), or NULL. Valid until this thread's next call. */
BCQ_EXPORT const char* bcq_isa_error(void);
/* The highest ISA name whose flags are all in `flags`: scalar, avx2, avx512, avx512vnni, neon, dotprod. */
BCQ_EXPORT const char* bcq_isa_name(uint32_t flags);

/* The rows of kernels.inc, in order of preference; `op` is "BcqMatMul" or "BcqGather". Outside the range: NULL, 0. */
BCQ_EXPORT int32_t bcq_kernel_count(const char* op);
BCQ_EXPORT const char* bcq_kernel_name(const char* op, int32_t index);
BCQ_EXPORT const char* bcq_kernel_source(const char* op, int32_t index);
BCQ_EXPORT uint32_t bcq_kernel_flags(const char* op, int32_t index);

/* The kernel that a CPU with `flags` runs for this problem; only sizes and accuracy_level are read, no pointer. */
BCQ_EXPORT const char* bcq_select_matmul(const BcqMatMulProblem* problem, uint32_t flags);
BCQ_EXPORT const char* bcq_select_gather(const BcqGatherProblem* problem, uint32_t flags);

/* Copies the first `bits` planes of problem->codes, which are as on disk, into `to`: [T, C, q, 16], 64-byte aligned, not
 * overlapping. Lines of 16 words keep their order; inside a line the words take the order in which `kernel` reads them
 * fastest, which for many kernels is the order of the disk. A problem with codes = to, resident = 1 and planes = 0 then
 * gives the same bits as before, with this kernel and no other. Reads N, K, bits, planes, codes, and what selects a
 * kernel when `kernel` is NULL.
 * Returns NULL, or one line that says why nothing was copied. */
BCQ_EXPORT const char* bcq_matmul_make_resident(const BcqMatMulProblem* problem, const char* kernel, uint32_t* to);
/* 1 when a resident copy for `kernel` has another order than the disk, so that it is faster than mapped codes by more
 * than the size of its pages; otherwise 0, also for an unknown kernel and for NULL. */
BCQ_EXPORT int32_t bcq_matmul_has_own_order(const char* kernel);
/* Bytes that resident copies may take together, those that this process holds included, before the library leaves codes
 * mapped on its own account: half of what is available and held. UINT64_MAX where the system does not say. */
BCQ_EXPORT uint64_t bcq_memory_for_copies(void);
/* Bytes of scratch that bcq_matmul needs, 64-byte aligned. Rows of A are taken in panels of at most 64, so it does not
 * grow with M from there on. `kernel` NULL: the one selected for this machine. */
BCQ_EXPORT size_t bcq_matmul_scratch_bytes(const BcqMatMulProblem* problem, const char* kernel);
/* Runs the problem. `parallel_for` NULL: one part after the other on this thread; `parts` 0: chosen by the work.
 * Returns NULL, or one line that says why nothing was computed: the kernel is unknown, this CPU lacks what it needs, or
 * it does not take the problem. */
BCQ_EXPORT const char* bcq_matmul(const BcqMatMulProblem* problem, const char* kernel, void* scratch, size_t parts,
                                  BcqParallelFor parallel_for, void* pool);
/* Runs a gather; it needs no scratch and takes codes as on disk only. */
BCQ_EXPORT const char* bcq_gather(const BcqGatherProblem* problem, const char* kernel, size_t parts,
                                  BcqParallelFor parallel_for, void* pool);
/* Position of the first index outside [-N, N-1], or -1. */
BCQ_EXPORT int64_t bcq_gather_bad_index(const BcqGatherProblem* problem);

/* Sum of the 64-bit words of [from, from + bytes), whole lines of 64 bytes only, each read once and in several streams:
 * the memory's read bandwidth, for benches. */
BCQ_EXPORT uint64_t bcq_read_bytes(const void* from, size_t bytes);

/* The operator contract as the library was built with it, one line per operator. */
BCQ_EXPORT const char* bcq_contract(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* BCQ_CORE_H_ */
