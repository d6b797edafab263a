// SPDX-License-Identifier: Apache-2.0
// For devices with little memory: what a process needed to load a model, and keeps although it will not use it again.
#pragma once

#if defined(__GLIBC__)
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>

#include <cstdint>

// Lets go of the code and constants of all libraries, which come back page by page, from the page cache, when they are
// used: onnxruntime runs 10 MB of code once, to read and optimize a graph. Then gives free heap back to the system.
inline void release_what_loading_used() {
  const auto release = [](dl_phdr_info* library, size_t, void*) {
    for (int i = 0; i < library->dlpi_phnum; ++i) {
      const ElfW(Phdr)& part = library->dlpi_phdr[i];
      if (part.p_type != PT_LOAD || (part.p_flags & PF_W) != 0) continue;  // the loader has written to those
      const uintptr_t begin = (library->dlpi_addr + part.p_vaddr) & ~uintptr_t(4095);
      const uintptr_t end = library->dlpi_addr + part.p_vaddr + part.p_memsz;
      madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
    }
    return 0;
  };
  dl_iterate_phdr(release, nullptr);
  malloc_trim(0);
}
#else
inline void release_what_loading_used() {}
#endif
