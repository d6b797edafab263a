// SPDX-License-Identifier: Apache-2.0
// RegisterCustomOps: the one symbol that ONNX Runtime looks up.
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "core/bcq_core.h"
#include "cuda/ort_ops.h"
#include "ort/custom_op.h"
#include "ort/node.h"
#include "ort/profile.h"
#include "ort/settings.h"

namespace bcq::ort {
namespace {

// Marks session options that have the domain already: ONNX Runtime refuses a domain that is added twice.
constexpr const char* kMark = "bcq.registered";

// Given back when the registration that it is made for fails; otherwise it lives as long as the process.
struct Domain {
  const Calls& calls;
  OrtCustomOpDomain* handle = nullptr;
  ~Domain() {
    if (handle != nullptr) calls.ReleaseCustomOpDomain(handle);
  }
};

// All operators for one ONNX Runtime and one choice of settings; a process may hold more than one of each.
struct Registration {
  Registration(const OrtApi* api, const Settings& chosen)
      : calls(calls_of(api)),
        settings(chosen),
        ops{matmul_op(calls, settings, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
            matmul_op(calls, settings, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
            matmul_op(calls, settings, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16),
            gather_op(calls, settings, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
            gather_op(calls, settings, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)},
        on_cuda(cuda_ops(api, calls, settings)),
        domain{calls} {
    check(calls, calls.CreateCustomOpDomain(contract::kDomain, &domain.handle));
    for (const CustomOp& op : ops) check(calls, calls.CustomOpDomain_Add(domain.handle, &op));
    for (const CudaOp& op : on_cuda) check(calls, calls.CustomOpDomain_Add(domain.handle, &op));
  }

  const Calls calls;
  const Settings settings;
  const CustomOp ops[5];
  const std::vector<CudaOp> on_cuda;
  Domain domain;
};

// Made once per ONNX Runtime and settings, and never freed: sessions keep pointers into it until the process ends.
const Registration& registration_for(const OrtApi* api, const Settings& settings) {
  static std::mutex& mutex = *new std::mutex;
  static auto& made = *new std::map<std::pair<const OrtApi*, std::string>, std::unique_ptr<Registration>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Registration>& entry = made[{api, settings.text()}];
  if (entry == nullptr) entry = std::make_unique<Registration>(api, settings);
  return *entry;
}

// True when these options have the library already, maybe another copy of it; other settings would come too late.
bool is_registered(const Calls& calls, OrtSessionOptions* options, const Settings& settings) {
  const std::string mark = config_entry(calls, options, kMark);
  if (mark.rfind("weights=", 0) == 0 && mark != settings.text()) {
    throw Refusal{"session options: got '" + printable(settings.text()) + "', expected '" + printable(mark) +
                  "' as in their first registration. Set bcq.weights and bcq.profile before that."};
  }
  return !mark.empty();
}

void add_to(OrtSessionOptions* options, const OrtApi* api) {
  const char* isa_error = bcq_isa_error();
  if (isa_error != nullptr) throw Refusal{isa_error};
  if (options == nullptr) throw Refusal{"session options: got none, expected some. Pass those of the session."};
  const Calls calls = calls_of(api);
  const Settings settings = read_settings(calls, options);
  if (is_registered(calls, options, settings)) return;
  check(calls, calls.AddCustomOpDomain(options, registration_for(api, settings).domain.handle));
  check(calls, calls.AddSessionConfigEntry(options, kMark, settings.text().c_str()));
}

// CreateStatus is the first function of every API version, so even an old ONNX Runtime can carry the reason; one that
// has no API at all gets it on stderr.
OrtStatus* refuse_old_runtime(const OrtApiBase* base) {
  char reason[256];
  const char* version = base == nullptr ? "none" : base->GetVersionString();
  std::snprintf(reason, sizeof reason,
                "bcq: got ONNX Runtime %.60s, expected release 1.%d or newer (API %d). Update onnxruntime.",
                version == nullptr ? "of an unknown release" : version, int(contract::kOrtApiVersion),
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
