/* SPDX-License-Identifier: Apache-2.0
 *
 * Packed matrices from C: products and look-ups on the caller's buffers, and a reader of exported models. The letters
 * M, K, N, q, g, T, C, G and the layout of the bits are those of ops/README.md; docs/embedding.md shows the use.
 *
 * This interface is stable: within one BCQ_ABI_VERSION fields and functions are only added, at the end. Numbers are
 * little-endian. Functions may be called from any thread; nothing here starts a thread, throws, writes to a stream or,
 * but for bcq_model_open, allocates. A function that can fail returns NULL, or one line that says what is wrong.
 */
#ifndef BCQ_H_
#define BCQ_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define BCQ_API
#else
#define BCQ_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BCQ_ABI_VERSION 1

/* BCQ_ABI_VERSION and the release ("0.1.0") that the library was built as. */
BCQ_API int32_t bcq_abi_version(void);
BCQ_API const char* bcq_version(void);

/* A packed matrix W [N, K]: q binary planes and their factors, wherever they lie. Nobody copies or frees them. Has no
 * size of its own, so no field is added within one BCQ_ABI_VERSION. */
typedef struct BcqMatrix {
  int64_t N;          /* outputs, 1 to 2^31 - 1 */
  int64_t K;          /* inputs, 1 to 2^31 - 1 */
  int64_t group_size; /* a multiple of 32, or K */
  int32_t bits;       /* q, 1 to 8: the planes that are used */
  int32_t planes;     /* that codes hold, at least q; 0: as many as bits */
  const uint32_t* codes;      /* [T, C, planes, 16], 4-byte aligned; fastest when 64-byte aligned */
  const uint16_t* alpha_1;    /* float16 [T, G, 16] */
  const uint16_t* alpha_rest; /* float16 [T, G, q-1, 16]; NULL when q = 1 */
  const uint16_t* offset;     /* float16 [T, G, 16], or NULL */
} BcqMatrix;

enum { BCQ_FLOAT32 = 0, BCQ_FLOAT16 = 1 };

/* Runs task(data, part) for every part in [0, parts), in any order, on any threads, and returns when all are done. */
typedef void (*BcqTask)(void* data, size_t part);
typedef void (*BcqParallelFor)(void* pool, BcqTask task, size_t parts, void* data);

/* Y[m, n] = sum_k A[m, k] W[n, k]. Fill with zeros first: a field that is 0 or NULL has its usual meaning. */
typedef struct BcqGemm {
  size_t struct_bytes; /* sizeof(BcqGemm), so that a later library knows which fields are there */
  const BcqMatrix* matrix;
  int64_t M;
  int32_t type;           /* of A and Y: BCQ_FLOAT32 or BCQ_FLOAT16 */
  int32_t accuracy_level; /* 0 near-exact, 1 float32, 4 int8 activations: ops/README.md */
  const void* a;          /* [M, K] */
  int64_t a_stride;       /* elements from row to row; 0: K */
  void* y;                /* [M, N], not overlapping A */
  int64_t y_stride;       /* 0: N */
  void* scratch;          /* bcq_gemm_scratch_bytes() bytes, 64-byte aligned; contents do not matter */
  size_t scratch_bytes;
  BcqParallelFor parallel_for; /* NULL: everything on this thread */
  void* pool;
} BcqGemm;

/* Bytes of scratch for this product; reads the matrix's sizes, M, type and accuracy_level, no data. 0 when none is
 * needed or the sizes are wrong, which bcq_gemm then says. It does not grow with M beyond 64 rows. */
BCQ_API size_t bcq_gemm_scratch_bytes(const BcqGemm* gemm);
/* Computes Y. Results are the same bits for any parallel_for, and for a row alone or among others. */
BCQ_API const char* bcq_gemm(const BcqGemm* gemm);
/* The kernel that computes this product here, for example "avx2_t16"; NULL when the sizes are wrong. */
BCQ_API const char* bcq_gemm_kernel(const BcqGemm* gemm);

/* Y[i, :] = W[rows[i], :] as float32 [count, K], each row in [-N, N-1]: an embedding's look-up. */
BCQ_API const char* bcq_rows(const BcqMatrix* matrix, const int64_t* rows, int64_t count, float* y);

/* The packed matrices of an exported model; its files stay mapped until bcq_model_close. */
typedef struct BcqModel BcqModel;

/* Opens an `.onnx` file, or the model.onnx of a folder, with its data beside it. Every size is checked, so the files
 * may come from anyone; one that is cut short while it is mapped ends the process, as with any mapped file. Returns NULL
 * on failure and then writes one line, ended by a zero, into `why` (which may be NULL when why_bytes is 0). */
BCQ_API BcqModel* bcq_model_open(const char* path, char* why, size_t why_bytes);
BCQ_API void bcq_model_close(BcqModel* model); /* NULL is fine */

/* Matrices in the order in which the graph uses them first; outside the range, or when there is no such name: NULL. */
BCQ_API size_t bcq_model_count(const BcqModel* model);
BCQ_API const char* bcq_model_name(const BcqModel* model, size_t index); /* "transformer.h.0.mlp.c_fc.weight" */
BCQ_API const BcqMatrix* bcq_model_matrix(const BcqModel* model, size_t index);
BCQ_API const BcqMatrix* bcq_model_find(const BcqModel* model, const char* name);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* BCQ_H_ */
