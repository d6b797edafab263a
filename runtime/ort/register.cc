// SPDX-License-Identifier: Apache-2.0
// RegisterCustomOps: the one symbol that ONNX Runtime looks up.
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>

#include "core/bcq_core.h"
#include "ort/custom_op.h"
#include "ort/node.h"

namespace bcq::ort {
namespace {

// Marks session options that have the domain already: ONNX Runtime refuses a domain that is added twice.
constexpr const char* kMark = "bcq.registered";

// All operators for one ONNX Runtime; a process may hold more than one.
struct Registration {
  explicit Registration(const OrtApi* api)
      : calls(calls_of(api)),
        ops{matmul_op(calls, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT), matmul_op(calls, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
            gather_op(calls, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64), gather_op(calls, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)} {
    check(calls, calls.CreateCustomOpDomain(contract::kDomain, &domain));
    for (const CustomOp& op : ops) check(calls, calls.CustomOpDomain_Add(domain, &op));
  }

  const Calls calls;
  const CustomOp ops[4];
  OrtCustomOpDomain* domain = nullptr;
};

// Made once per ONNX Runtime and never freed: sessions keep pointers into it until the process ends.
const Registration& registration_for(const OrtApi* api) {
  static std::mutex& mutex = *new std::mutex;
  static auto& made = *new std::map<const OrtApi*, std::unique_ptr<Registration>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Registration>& entry = made[api];
  if (entry == nullptr) entry = std::make_unique<Registration>(api);
  return *entry;
}

void add_to(OrtSessionOptions* options, const OrtApi* api) {
  const char* isa_error = bcq_isa_error();
  if (isa_error != nullptr) throw Refusal{isa_error};
  const Registration& registration = registration_for(api);
  const Calls& calls = registration.calls;
  int marked = 0;
  check(calls, calls.HasSessionConfigEntry(options, kMark, &marked));
  if (marked != 0) return;
  check(calls, calls.AddCustomOpDomain(options, registration.domain));
  check(calls, calls.AddSessionConfigEntry(options, kMark, "1"));
}

// CreateStatus is the first function of every API version, so even an old ONNX Runtime can carry the reason; one that
// has no API at all gets it on stderr.
OrtStatus* refuse_old_runtime(const OrtApiBase* base) {
  char reason[256];
  std::snprintf(reason, sizeof reason,
                "bcq: got ONNX Runtime %s, expected release 1.%d or newer (API %d). Update onnxruntime.",
                base == nullptr ? "none" : base->GetVersionString(), int(contract::kOrtApiVersion),
                int(contract::kOrtApiVersion));
  const OrtApi* oldest = base == nullptr ? nullptr : base->GetApi(1);
  if (oldest == nullptr) {
    std::fprintf(stderr, "%s\n", reason);
    return nullptr;
  }
  const auto create_status = reinterpret_cast<decltype(Calls::CreateStatus)>(*reinterpret_cast<void* const*>(oldest));
  return create_status(ORT_FAIL, reason);
}

}  // namespace
}  // namespace bcq::ort

extern "C" BCQ_EXPORT bcq::ort::OrtStatus* RegisterCustomOps(bcq::ort::OrtSessionOptions* options,
                                                             const bcq::ort::OrtApiBase* base) {
  using namespace bcq::ort;
  const OrtApi* api = base == nullptr ? nullptr : base->GetApi(uint32_t(bcq::contract::kOrtApiVersion));
  if (api == nullptr) return refuse_old_runtime(base);
  return guarded(calls_of(api), [&] { add_to(options, api); });
}
