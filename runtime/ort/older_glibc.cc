// SPDX-License-Identifier: Apache-2.0
// What the library would ask of glibc 2.32 and 2.33, and of libstdc++ of GCC 11, only because it was built with them, in
// the words of older ones. One build then serves every Linux whose onnxruntime does (manylinux_2_28); a test looks at the
// symbols asked for.
#include <features.h>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#if __GLIBC_PREREQ(2, 33)
#include <sys/stat.h>

#include <new>

#define BCQ_LOCAL __attribute__((visibility("hidden")))

extern "C" {

int __fxstat(int version, int file, struct stat* facts) noexcept;
int __xstat(int version, const char* path, struct stat* facts) noexcept;

#ifdef __x86_64__
constexpr int kStatVersion = 1;
#else
constexpr int kStatVersion = 0;
#endif

// Before 2.33 fstat and stat were wrappers of these functions, compiled into each program.
BCQ_LOCAL int fstat(int file, struct stat* facts) noexcept { return __fxstat(kStatVersion, file, facts); }
BCQ_LOCAL int stat(const char* path, struct stat* facts) noexcept { return __xstat(kStatVersion, path, facts); }

// What containers throw for a size that no memory has; since GCC 11 it has a function of its own.
[[noreturn]] BCQ_LOCAL void bcq_too_long() __asm__("_ZSt28__throw_bad_array_new_lengthv");
void bcq_too_long() { throw std::bad_array_new_length(); }

// libstdc++'s std::shared_ptr asks whether it may count without atomics (since 2.32): no.
BCQ_LOCAL char __libc_single_threaded = 0;
}
#endif
#endif
