// SPDX-License-Identifier: Apache-2.0
// The device of the emulated library: its sizes come from the environment, so that tests reach every path.
#include <cstdlib>

#include "cuda/device.h"

namespace bcq::cuda {
namespace {

int number(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoi(text);
}

}  // namespace

bool current_device(Device& device) {
  device.sm = number("BCQ_CUDA_EMULATED_SM", 90);
  device.processors = number("BCQ_CUDA_EMULATED_PROCESSORS", 132);
  device.shared_bytes = number("BCQ_CUDA_EMULATED_SHARED", 227 * 1024);
  return true;
}

const char* why_unavailable() { return nullptr; }
const char* device_text() { return "emulated on the CPU"; }

}  // namespace bcq::cuda
