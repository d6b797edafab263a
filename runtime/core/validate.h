// SPDX-License-Identifier: Apache-2.0
// The one validator: attributes, shapes and padding of a packed weight, before any byte is read by a kernel.
// It knows no ONNX Runtime type and trusts nothing. Every check returns an empty string when all is well, otherwise
// "<field>: got <x>, expected <y>. <what to do>"; the caller puts operator and node in front.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace bcq {

// The attributes of a node, as read.
struct Attributes {
  int64_t format_version = 0;
  int64_t bits = 0;
  int64_t planes = 0;  // no attribute: that codes hold, from their checked shape; 0: as many as bits
  int64_t K = 0;
  int64_t N = 0;
  int64_t group_size = 0;
  int64_t accuracy_level = 0;
  std::string layout;
  std::string code_hash;
};

struct Shape {
  const int64_t* dims;
  size_t rank;
};

// Format version, layout, bits, K, N, group size, accuracy level, hash. After this every product of sizes of the
// weight fits in int64: K and N stay below 2^31 and bits below 9, so N * K * bits < 2^65 / 32 words.
std::string check_attributes(const Attributes& attributes);

// The four tensors of a weight whose attributes have been checked. Codes have as many planes as bits, in the nested
// format more.
std::string check_codes(const Attributes& attributes, Shape shape);
std::string check_alpha_1(const Attributes& attributes, Shape shape);
std::string check_alpha_rest(const Attributes& attributes, Shape shape);
std::string check_offset(const Attributes& attributes, Shape shape);

// The bits of rows N .. 16 T - 1 and of inputs K .. 32 C - 1 are zero, in all planes that codes hold. Reads only words
// that hold padding, so a matrix whose sizes fit is not touched and stays unread on disk.
std::string check_padding(const Attributes& attributes, const uint32_t* codes);

// The last dimension of an activation [..., K].
std::string check_activation(const Attributes& attributes, Shape shape);

// Product of the dimensions [0, count), or -1 when one is negative or the product times `bytes` exceeds int64.
int64_t checked_product(const int64_t* dims, size_t count, int64_t bytes);

}  // namespace bcq
