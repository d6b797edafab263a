# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` and `cpack` deliver: in a wheel the operator library and the contract; otherwise a tree for C
# and C++ with find_package(bcq): bcq::ops, the custom operators, bcq::core, the C interface of capi/bcq.h alone, and
# bcq::native, the decoder of capi/bcq_decoder.h on top of it.

file(STRINGS "${CMAKE_CURRENT_SOURCE_DIR}/../pyproject.toml" BCQ_VERSION_LINE REGEX "^version = " LIMIT_COUNT 1)
string(REGEX REPLACE "^version = \"(.*)\"$" "\\1" BCQ_VERSION "${BCQ_VERSION_LINE}")
set_source_files_properties(capi/gemm.cc PROPERTIES COMPILE_DEFINITIONS "BCQ_VERSION=\"${BCQ_VERSION}\"")

if(SKBUILD)
  install(TARGETS bcq_ops LIBRARY DESTINATION bcq)
  install(FILES "${BCQ_CONTRACT_JSON}" DESTINATION bcq)
  return()
endif()

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

# bcq::core: the core and the kernels of bcq_ops, as they were compiled there, and the C interface around them.
set(BCQ_ISA_ONLY "" CACHE STRING "bcq_core for one instruction set, without detection: scalar, avx2 or neon")
add_library(bcq_core STATIC ${BCQ_CAPI})
if(BCQ_ISA_ONLY)
  include(cmake/one_isa.cmake)
else()
  set(BCQ_CORE_OBJECTS "/(kernels/.*|core/(cpu|dispatch|run|validate))\\.cc")
  target_sources(bcq_core PRIVATE "$<FILTER:$<TARGET_OBJECTS:bcq_ops>,INCLUDE,${BCQ_CORE_OBJECTS}>")
endif()
add_library(bcq_native STATIC ${BCQ_NATIVE})
find_package(Threads REQUIRED)
target_link_libraries(bcq_native PUBLIC bcq_core Threads::Threads)
foreach(library IN ITEMS bcq_core bcq_native)
  target_include_directories(${library} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}" "${CMAKE_CURRENT_BINARY_DIR}")
  target_include_directories(${library} INTERFACE
    "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/capi>" "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
  target_compile_options(${library} PRIVATE ${BCQ_WARNINGS} -ffp-contract=off -ffunction-sections -fdata-sections)
endforeach()

set_target_properties(bcq_ops PROPERTIES EXPORT_NAME ops)
set_target_properties(bcq_core PROPERTIES EXPORT_NAME core)
set_target_properties(bcq_native PROPERTIES EXPORT_NAME native)
target_include_directories(bcq_ops INTERFACE
  "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/capi>" "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
add_library(bcq::ops ALIAS bcq_ops)
add_library(bcq::core ALIAS bcq_core)
add_library(bcq::native ALIAS bcq_native)

if(NOT CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  return()  # part of another project, which installs what it wants
endif()

set(BCQ_PACKAGE_FOLDER "${CMAKE_INSTALL_LIBDIR}/cmake/bcq")
install(TARGETS bcq_ops bcq_core bcq_native EXPORT bcq
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(EXPORT bcq NAMESPACE bcq:: FILE bcqTargets.cmake DESTINATION "${BCQ_PACKAGE_FOLDER}")
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/bcqConfig.cmake.in"
  "${CMAKE_CURRENT_BINARY_DIR}/bcqConfig.cmake" INSTALL_DESTINATION "${BCQ_PACKAGE_FOLDER}")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/bcqConfigVersion.cmake"
  VERSION "${BCQ_VERSION}" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/bcqConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/bcqConfigVersion.cmake"
  DESTINATION "${BCQ_PACKAGE_FOLDER}")
install(FILES capi/bcq.h capi/bcq_decoder.h capi/bcq_ops.h DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES ../LICENSE ../ops/README.md ../docs/embedding.md "${BCQ_CONTRACT_JSON}"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/bcq")
install(DIRECTORY ../examples/cpp DESTINATION "${CMAKE_INSTALL_DATADIR}/bcq/examples")

# `cmake --build build --target package`: one archive for this target, symbols stripped.
string(TOLOWER "${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}" BCQ_TARGET_NAME)
set(CPACK_GENERATOR TGZ)
set(CPACK_PACKAGE_NAME bcq)
set(CPACK_PACKAGE_VERSION "${BCQ_VERSION}")
set(CPACK_PACKAGE_FILE_NAME "bcq-${BCQ_VERSION}-${BCQ_TARGET_NAME}")
set(CPACK_PACKAGE_VENDOR "onnx-bcq")
set(CPACK_RESOURCE_FILE_LICENSE "${CMAKE_CURRENT_SOURCE_DIR}/../LICENSE")
set(CPACK_STRIP_FILES ON)
include(CPack)
