// SPDX-License-Identifier: Apache-2.0
// Resident weights: a private copy of a node's codes in huge pages and in the order of the kernel that reads them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/bcq_core.h"

namespace bcq::ort {

// Copies problem.codes for `kernel` and lets go of the mapped pages. Nodes with equal codes and kernels of one order,
// also of other sessions, share one copy: `code_hash` only says where to look, equality is that of the bytes. The copy
// lies near the thread that asks first. Null when there is no memory, or, if `sparing`, when all copies together would
// take more than half of the memory that this process may have (core/memory.h).
std::shared_ptr<const uint32_t> resident_codes(const BcqMatMulProblem& problem, const char* kernel,
                                               const std::string& code_hash, bool sparing);

// Bytes of such a copy.
size_t resident_bytes(const BcqMatMulProblem& problem);

}  // namespace bcq::ort
