/* SPDX-License-Identifier: Apache-2.0
 *
 * A decoder that `bcq export` wrote, run without onnxruntime from the same files: it goes through the graph of the file,
 * whose operators it knows as far as GPT-2 and Llama need them (docs/embedding.md has the list). Weights are mapped; all
 * other memory is taken when the decoder is opened, and does not grow.
 *
 * Stable like bcq.h. A decoder is for one thread at a time; several decoders share nothing but the files' pages.
 */
#ifndef BCQ_DECODER_H_
#define BCQ_DECODER_H_

#include "bcq.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct BcqDecoder BcqDecoder;

/* Fill with zeros first: a field that is 0 or NULL has its usual meaning. */
typedef struct BcqDecoderOptions {
  size_t struct_bytes; /* sizeof(BcqDecoderOptions) */
  int64_t room;        /* tokens that it can see, prompt included; there is no usual value */
  int32_t threads;     /* that compute, the caller's included; 0: one. Results have the same bits for any number */
  int32_t chunk;       /* tokens of a prompt that run together; 0: 64. Memory grows with it */
  BcqParallelFor parallel_for; /* at least two `threads` of the caller; NULL: the decoder starts its own */
  void* pool;
} BcqDecoderOptions;

/* Bytes that a decoder has. Those of the files and of the cache become resident as they are used. */
typedef struct BcqDecoderBytes {
  size_t struct_bytes; /* sizeof(BcqDecoderBytes), from the caller: no more is written */
  size_t arena;   /* what lies between two nodes */
  size_t cache;   /* keys and values for all of `room` */
  size_t scratch; /* of products and attention */
  size_t mapped;  /* the graph and its data files */
} BcqDecoderBytes;

/* Opens an `.onnx` file, or the model.onnx of a folder, with its data beside it. Every size is checked, so the files may
 * come from anyone (see bcq_model_open). Returns NULL on failure and writes one line, ended by a zero, into `why`: it
 * names the node that cannot run here. */
BCQ_API BcqDecoder* bcq_decoder_open(const char* path, const BcqDecoderOptions* options, char* why, size_t why_bytes);

/* Runs `count` tokens more. *logits: [vocabulary] after the last of them, valid until the next call. Returns NULL, or
 * one line that is valid as long; then the decoder has seen what it had seen before. */
BCQ_API const char* bcq_decoder_step(BcqDecoder* decoder, const int64_t* ids, int64_t count, const float** logits);
/* Forgets all but the first `tokens`; 0 begins again. */
BCQ_API void bcq_decoder_keep(BcqDecoder* decoder, int64_t tokens);

BCQ_API int64_t bcq_decoder_seen(const BcqDecoder* decoder);
BCQ_API int64_t bcq_decoder_vocabulary(const BcqDecoder* decoder);
BCQ_API void bcq_decoder_bytes(const BcqDecoder* decoder, BcqDecoderBytes* bytes);
BCQ_API void bcq_decoder_close(BcqDecoder* decoder); /* NULL is fine */

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* BCQ_DECODER_H_ */
