// SPDX-License-Identifier: Apache-2.0
// The rows of A and Y in the vectors of the instruction set that a file of kernels is compiled for.
#pragma once

#if defined(__aarch64__) || defined(BCQ_EMULATED_NEON)
#include "kernels/bcq_matmul/neon_rows.h"
#else
#include "kernels/bcq_matmul/x86_rows.h"
#endif
