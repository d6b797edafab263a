// SPDX-License-Identifier: Apache-2.0
// For files that open libraries: with glibc 2.34 dlopen and its like moved into libc and got that version. The older
// ones, which glibc still has, are as good, and with them the library loads where glibc is older (see older_glibc.cc).
#pragma once

#include <features.h>

#if defined(__x86_64__)
#define BCQ_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define BCQ_FIRST_GLIBC "GLIBC_2.17"
#endif

#if defined(__GLIBC__) && defined(BCQ_FIRST_GLIBC)
__asm__(".symver dladdr, dladdr@" BCQ_FIRST_GLIBC);
__asm__(".symver dlclose, dlclose@" BCQ_FIRST_GLIBC);
__asm__(".symver dlopen, dlopen@" BCQ_FIRST_GLIBC);
__asm__(".symver dlsym, dlsym@" BCQ_FIRST_GLIBC);
#endif
