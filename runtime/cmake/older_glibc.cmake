# SPDX-License-Identifier: Apache-2.0
# Built with a new glibc the library shall load with an older one: BCQ_OLDER_GLIBC, on where glibc has both. dlopen lay
# in libdl.so.2 then, which a new glibc keeps as an empty library.
include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_LINK_OPTIONS -Wl,--no-as-needed)
set(CMAKE_REQUIRED_LIBRARIES -l:libdl.so.2)
check_cxx_source_compiles("
  #include <dlfcn.h>
  #include \"${CMAKE_CURRENT_SOURCE_DIR}/ort/older_glibc.h\"
  #ifndef BCQ_FIRST_GLIBC
  #error no other version is known
  #endif
  int main(int, char** words) { return dlopen(words[0], RTLD_NOW) == nullptr; }" BCQ_GLIBC_HAS_OLDER_SYMBOLS)
unset(CMAKE_REQUIRED_LINK_OPTIONS)
unset(CMAKE_REQUIRED_LIBRARIES)

option(BCQ_OLDER_GLIBC "Ask for no newer symbols of glibc than manylinux_2_28 has" ${BCQ_GLIBC_HAS_OLDER_SYMBOLS})
if(BCQ_OLDER_GLIBC AND NOT BCQ_SANITIZE)  # sanitizers replace these functions by their own
  target_sources(bcq_ops PRIVATE ort/older_glibc.cc)
  set_source_files_properties(cuda/part.cc PROPERTIES COMPILE_OPTIONS "-include;ort/older_glibc.h")
  target_link_libraries(bcq_ops PRIVATE -Wl,--push-state,--no-as-needed -l:libdl.so.2 -Wl,--pop-state)
endif()
