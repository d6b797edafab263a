# SPDX-License-Identifier: Apache-2.0
# bcq_core for one instruction set: the sources of bcq_ops compiled again, without the kernels of others and without what
# detects CPUs. Products then need no C++ library, and the linker drops all that is not called.
set(BCQ_ONE_ISA_scalar "0")
set(BCQ_ONE_ISA_avx2 "BCQ_CPU_AVX2")
set(BCQ_ONE_ISA_neon "BCQ_CPU_NEON")
if(NOT DEFINED BCQ_ONE_ISA_${BCQ_ISA_ONLY})
  message(FATAL_ERROR "BCQ_ISA_ONLY: got '${BCQ_ISA_ONLY}', expected scalar, avx2 or neon")
endif()

get_target_property(BCQ_CORE_SOURCES bcq_ops SOURCES)
get_target_property(BCQ_CORE_DEFINITIONS bcq_ops COMPILE_DEFINITIONS)
list(FILTER BCQ_CORE_SOURCES INCLUDE REGEX "^(kernels/.*|core/(dispatch|run|validate))\\.cc$")
list(FILTER BCQ_CORE_SOURCES EXCLUDE REGEX "/avx512[^/]*$")
if(BCQ_ISA_ONLY STREQUAL "scalar")
  list(FILTER BCQ_CORE_SOURCES INCLUDE REGEX "^core/|/scalar\\.cc$")
  list(FILTER BCQ_CORE_DEFINITIONS EXCLUDE REGEX "^BCQ_ARCH_")
endif()
list(APPEND BCQ_CORE_DEFINITIONS BCQ_ONE_ISA=1 "BCQ_ONE_ISA_FLAGS=(${BCQ_ONE_ISA_${BCQ_ISA_ONLY}})")

target_sources(bcq_core PRIVATE ${BCQ_CORE_SOURCES} capi/one_isa.cc)
target_compile_definitions(bcq_core PRIVATE ${BCQ_CORE_DEFINITIONS})
# -O3 unrolls kernels to more than twice the size.
target_compile_options(bcq_core PRIVATE $<$<CONFIG:Release>:-O2> -fno-asynchronous-unwind-tables -fno-threadsafe-statics)
