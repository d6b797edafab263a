// SPDX-License-Identifier: Apache-2.0
#include "cuda/device.h"

#include <cstdio>

namespace bcq::cuda {
namespace {

constexpr int kOldest = 75;

bool attribute(int& value, cudaDeviceAttr name, int device) {
  return cudaDeviceGetAttribute(&value, name, device) == cudaSuccess;
}

bool read(int number, Device& device) {
  int major = 0, minor = 0;
  if (!attribute(major, cudaDevAttrComputeCapabilityMajor, number) ||
      !attribute(minor, cudaDevAttrComputeCapabilityMinor, number) ||
      !attribute(device.processors, cudaDevAttrMultiProcessorCount, number) ||
      !attribute(device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, number)) {
    return false;
  }
  device.sm = 10 * major + minor;
  return device.sm >= kOldest;
}

}  // namespace

bool current_device(Device& device) {
  static thread_local int known = -1;
  static thread_local Device held;
  int number = 0;
  if (cudaGetDevice(&number) != cudaSuccess) return false;
  if (number != known) {
    if (!read(number, held)) return false;
    known = number;
  }
  device = held;
  return true;
}

const char* why_unavailable() {
  static thread_local char text[200];
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) return "the driver is missing or older than CUDA 13. Install NVIDIA's driver 580 or newer.";
  if (error != cudaSuccess || count == 0) {
    std::snprintf(text, sizeof text, "no CUDA device: %s.", error == cudaSuccess ? "none found" : cudaGetErrorString(error));
    cudaGetLastError();
    return text;
  }
  Device device = {};
  int number = 0;
  if (current_device(device)) return nullptr;
  if (cudaGetDevice(&number) == cudaSuccess) read(number, device);
  std::snprintf(text, sizeof text, "the device has compute capability %d.%d, expected 7.5 or newer.", device.sm / 10,
                device.sm % 10);
  return text;
}

const char* device_text() {
  static thread_local char text[400];
  Device device;
  int number = 0;
  cudaDeviceProp properties;
  if (!current_device(device) || cudaGetDevice(&number) != cudaSuccess) return nullptr;
  if (cudaGetDeviceProperties(&properties, number) != cudaSuccess) return nullptr;
  std::snprintf(text, sizeof text, "%s, sm_%d, %d multiprocessors", properties.name, device.sm, device.processors);
  return text;
}

const char* launch_error(cudaError_t error) {
  static thread_local char text[200];
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // it is told here, so that nobody else finds it
  std::snprintf(text, sizeof text, "the launch failed: %s", cudaGetErrorString(error));
  return text;
}

}  // namespace bcq::cuda
