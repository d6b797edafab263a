/* SPDX-License-Identifier: Apache-2.0
 *
 * The entry of libbcq_ops.so for programs that link it; others give its path to RegisterCustomOpsLibrary. Include an
 * onnxruntime header first.
 */
#ifndef BCQ_OPS_H_
#define BCQ_OPS_H_

#ifdef __cplusplus
extern "C" {
#endif

/* Adds the operators to session options; a second time does nothing. Returns NULL, or a status that OrtApi releases.
 * `base` is OrtGetApiBase(), version 1.21 or newer. */
OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* BCQ_OPS_H_ */
