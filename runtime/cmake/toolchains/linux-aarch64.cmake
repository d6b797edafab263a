# SPDX-License-Identifier: Apache-2.0
# Linux on 64-bit Arm from another machine, by Debian's cross compiler (g++-aarch64-linux-gnu) or one of the same names:
#   cmake -S runtime -B build/linux-aarch64 -DCMAKE_TOOLCHAIN_FILE=cmake/toolchains/linux-aarch64.cmake
# Programs of the build run under qemu where it is installed (Debian: qemu-user).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(BCQ_TARGET aarch64-linux-gnu CACHE STRING "Prefix of the cross compiler's names")
set(CMAKE_C_COMPILER "${BCQ_TARGET}-gcc")
set(CMAKE_CXX_COMPILER "${BCQ_TARGET}-g++")

set(CMAKE_FIND_ROOT_PATH "/usr/${BCQ_TARGET}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

find_program(BCQ_EMULATOR NAMES qemu-aarch64 qemu-aarch64-static)
if(BCQ_EMULATOR)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${BCQ_EMULATOR};-L;/usr/${BCQ_TARGET}")
endif()
