// SPDX-License-Identifier: Apache-2.0
// What the library would ask of glibc 2.32 and 2.33 only because it was built with it, in the words of older ones. One
// build then serves every Linux whose onnxruntime does (manylinux_2_28); a test looks at the symbols asked for.
#include <features.h>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#if __GLIBC_PREREQ(2, 33)
#include <sys/stat.h>

#define BCQ_LOCAL __attribute__((visibility("hidden")))

extern "C" {

int __fxstat(int version, int file, struct stat* facts) noexcept;

// Before 2.33 fstat was a wrapper of this function, compiled into each program.
BCQ_LOCAL int fstat(int file, struct stat* facts) noexcept {
#ifdef __x86_64__
  constexpr int kVersion = 1;
#else
  constexpr int kVersion = 0;
#endif
  return __fxstat(kVersion, file, facts);
}

// libstdc++'s std::shared_ptr asks whether it may count without atomics (since 2.32): no.
BCQ_LOCAL char __libc_single_threaded = 0;
}
#endif
#endif
