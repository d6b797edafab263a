// SPDX-License-Identifier: Apache-2.0
// ONNX Runtime's thread pool in the form that the kernels' C ABI takes.
#pragma once

#include "core/bcq_core.h"
#include "ort/ort_abi.h"

namespace bcq::ort {

struct Threads {
  const Calls& calls;
  const OrtKernelContext* context;
};

// A BcqParallelFor; `pool` is a Threads. Parts are independent and may run twice, so a refusal of the pool only costs
// time: all parts then run here.
inline void parallel_for(void* pool, BcqTask task, size_t parts, void* data) {
  const Threads& threads = *static_cast<Threads*>(pool);
  OrtStatus* status = threads.calls.KernelContext_ParallelFor(threads.context, task, parts, 0, data);
  if (status == nullptr) return;
  threads.calls.ReleaseStatus(status);
  for (size_t part = 0; part < parts; ++part) task(data, part);
}

}  // namespace bcq::ort
