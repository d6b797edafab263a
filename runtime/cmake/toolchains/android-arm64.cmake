# SPDX-License-Identifier: Apache-2.0
# Android on 64-bit Arm, by the NDK (r23 or later) that ANDROID_NDK_ROOT names, in the environment or as -D:
#   cmake -S runtime -B build/android-arm64 -DCMAKE_TOOLCHAIN_FILE=cmake/toolchains/android-arm64.cmake
# The library then needs libc, libm and libdl of the system alone; API level 26 is Android 8.
if(NOT ANDROID_NDK_ROOT)
  set(ANDROID_NDK_ROOT "$ENV{ANDROID_NDK_ROOT}")
endif()
# CMake reads this file again for each of its own trials, without what was set by -D.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ANDROID_NDK_ROOT)

set(BCQ_NDK_TOOLCHAIN "${ANDROID_NDK_ROOT}/build/cmake/android.toolchain.cmake")
if(NOT EXISTS "${BCQ_NDK_TOOLCHAIN}")
  message(FATAL_ERROR "ANDROID_NDK_ROOT: got '${ANDROID_NDK_ROOT}', expected the folder of an NDK, which holds "
    "build/cmake/android.toolchain.cmake. Install the NDK and name its folder.")
endif()

set(ANDROID_ABI "arm64-v8a")
set(ANDROID_STL "c++_static")
if(NOT ANDROID_PLATFORM)
  set(ANDROID_PLATFORM "android-26")
endif()
include("${BCQ_NDK_TOOLCHAIN}")
