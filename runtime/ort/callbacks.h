// SPDX-License-Identifier: Apache-2.0
// Creation, compute and destruction as ONNX Runtime calls them, around a C++ class that only throws.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

#include "ort/custom_op.h"
#include "ort/node.h"

namespace bcq::ort {

// Kernel has: Kernel(const CustomOp&, const OrtKernelInfo*), void run(OrtKernelContext*) const. Both throw Refusal; the
// messages that leave the library start with operator and node.
template <typename Kernel>
class Callbacks {
 public:
  static OrtStatus* create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    const CustomOp& registration = *static_cast<const CustomOp*>(op);
    const Calls& calls = *registration.calls;
    return guarded(calls, [&] {
      const std::string title = node_title(calls, info, registration.op->name);
      named(title, [&] { *kernel = new Named{calls, title, Kernel(registration, info)}; });
    });
  }

  static OrtStatus* compute(void* kernel, OrtKernelContext* context) {
    const Named& self = *static_cast<Named*>(kernel);
    return guarded(self.calls, [&] { named(self.title, [&] { self.kernel.run(context); }); });
  }

  static void destroy(void* kernel) { delete static_cast<Named*>(kernel); }

 private:
  struct Named {
    const Calls& calls;
    std::string title;
    Kernel kernel;
  };

  template <typename Body>
  static void named(const std::string& title, const Body& body) {
    try {
      body();
    } catch (const Refusal& refusal) {
      throw Refusal{title + ": " + refusal.message};
    } catch (const NoMemory& wanted) {
      throw std::runtime_error(title + ": no memory for " + std::to_string(wanted.bytes) + " bytes. " + wanted.advice);
    } catch (const std::bad_alloc&) {
      throw std::runtime_error(title + ": no memory. Free some, open fewer sessions or set bcq.weights to mapped.");
    }
  }
};

template <typename Kernel>
CustomOp make_custom_op(const Calls& calls, const Settings& settings, const contract::Op& op,
                        ONNXTensorElementDataType first_input, ONNXTensorElementDataType output) {
  CustomOp made = common_custom_op(calls, settings, op, first_input, output);
  made.CreateKernelV2 = Callbacks<Kernel>::create;
  made.KernelComputeV2 = Callbacks<Kernel>::compute;
  made.KernelDestroy = Callbacks<Kernel>::destroy;
  return made;
}

}  // namespace bcq::ort
