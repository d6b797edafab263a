// SPDX-License-Identifier: Apache-2.0
#include "cuda/part.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace bcq::ort {
namespace {

constexpr const char* kName = "libbcq_ops_cuda.so";

std::string path_of_part() {
  const char* named = std::getenv("BCQ_CUDA_LIBRARY");
  if (named != nullptr && *named != '\0') return named;
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&cuda_part), &self) == 0 || self.dli_fname == nullptr) return {};
  const std::string library = self.dli_fname;
  const size_t slash = library.rfind('/');
  return slash == std::string::npos ? std::string() : library.substr(0, slash + 1) + kName;
}

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// Whether the library has this interface and a device that it can use.
bool is_usable(void* library, CudaPart& part) {
  decltype(&bcq_cuda_abi) abi = nullptr;
  decltype(&bcq_cuda_unavailable) unavailable = nullptr;
  if (!find(library, "bcq_cuda_abi", abi) || abi() != BCQ_CUDA_ABI) return false;
  return find(library, "bcq_cuda_unavailable", unavailable) && find(library, "bcq_cuda_matmul", part.matmul) &&
         find(library, "bcq_cuda_gather", part.gather) && unavailable() == nullptr;
}

const CudaPart* open_part() {
  static CudaPart part;
  const std::string path = path_of_part();
  if (path.empty() || access(path.c_str(), R_OK) != 0) return nullptr;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return nullptr;
  if (is_usable(library, part)) return &part;  // stays open: operators point into it until the process ends
  dlclose(library);
  return nullptr;
}

}  // namespace

const CudaPart* cuda_part() {
  static const CudaPart* const part = open_part();
  return part;
}

}  // namespace bcq::ort
