// SPDX-License-Identifier: Apache-2.0
#include "core/validate.h"

#include "contract.h"

namespace bcq {
namespace {

constexpr int64_t kLargest = INT32_MAX;  // of K, N and group_size
constexpr const char* kExportAgain = "The file is damaged or was not made by this project: export the model again.";

std::string got(const char* field, const std::string& found, const std::string& expected, const char* advice) {
  return std::string(field) + ": got " + found + ", expected " + expected + ". " + advice;
}

std::string check_range(const char* field, int64_t value, int64_t least, int64_t most) {
  if (least <= value && value <= most) return {};
  return got(field, std::to_string(value), std::to_string(least) + " to " + std::to_string(most), kExportAgain);
}

std::string text_of(Shape shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape.dims[i]);
  return text + "]";
}

bool equal(Shape a, Shape b) {
  if (a.rank != b.rank) return false;
  for (size_t i = 0; i < a.rank; ++i) {
    if (a.dims[i] != b.dims[i]) return false;
  }
  return true;
}

std::string check_shape(const char* tensor, Shape found, Shape expected, const char* alternative = "") {
  if (equal(found, expected)) return {};
  return got((std::string(tensor) + " shape").c_str(), text_of(found), text_of(expected) + alternative, kExportAgain);
}

int64_t tiles(const Attributes& a) { return (a.N + contract::kTileRows - 1) / contract::kTileRows; }
int64_t chunks(const Attributes& a) { return (a.K + contract::kWordBits - 1) / contract::kWordBits; }
int64_t planes(const Attributes& a) { return a.planes == 0 ? a.bits : a.planes; }
int64_t groups(const Attributes& a) { return (a.K - 1) / a.group_size + 1; }

bool is_lower_hex_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// The text as it may stand in a message: short and printable.
std::string quoted(const std::string& text) {
  std::string shown = "'";
  for (const char c : text.substr(0, 80)) shown += (c >= 0x20 && c < 0x7f) ? c : '?';
  return shown + (text.size() > 80 ? "...'" : "'");
}

std::string padding_error(int64_t row, int64_t input) {
  return got("codes padding", "a set bit at row " + std::to_string(row) + ", input " + std::to_string(input),
             "zero in all padding", kExportAgain);
}

int64_t lowest_bit(uint32_t word) {
  int64_t bit = 0;
  while (((word >> bit) & 1u) == 0) ++bit;
  return bit;
}

// Rows `first_lane` .. 15 of one tile over all of its words.
std::string check_row_padding(const Attributes& a, const uint32_t* codes, int64_t tile, int64_t first_lane) {
  const int64_t lines = chunks(a) * planes(a);
  for (int64_t line = 0; line < lines; ++line) {
    const uint32_t* words = codes + (tile * lines + line) * contract::kTileRows;
    for (int64_t lane = first_lane; lane < contract::kTileRows; ++lane) {
      if (words[lane] == 0) continue;
      const int64_t input = line / planes(a) * contract::kWordBits + lowest_bit(words[lane]);
      return padding_error(tile * contract::kTileRows + lane, input);
    }
  }
  return {};
}

// The bits above `used` in the last chunk of one tile.
std::string check_input_padding(const Attributes& a, const uint32_t* codes, int64_t tile, int64_t used) {
  const uint32_t* words = codes + (tile * chunks(a) + chunks(a) - 1) * planes(a) * contract::kTileRows;
  const uint32_t padding = ~uint32_t(0) << used;
  for (int64_t i = 0; i < planes(a) * contract::kTileRows; ++i) {
    if ((words[i] & padding) == 0) continue;
    const int64_t input = (chunks(a) - 1) * contract::kWordBits + lowest_bit(words[i] & padding);
    return padding_error(tile * contract::kTileRows + i % contract::kTileRows, input);
  }
  return {};
}

std::string check_group_size(const Attributes& a) {
  const bool multiple = a.group_size > 0 && a.group_size % contract::kGroupSizeMultiple == 0;
  if (a.group_size <= kLargest && (multiple || a.group_size == a.K)) return {};
  return got("group_size", std::to_string(a.group_size),
             "a multiple of " + std::to_string(contract::kGroupSizeMultiple) + " up to " + std::to_string(kLargest) +
                 ", or K = " + std::to_string(a.K),
             kExportAgain);
}

std::string check_format(const Attributes& a) {
  if (a.format_version != contract::kFormatVersion && a.format_version != contract::kNestedFormatVersion) {
    return got("format_version", std::to_string(a.format_version),
               std::to_string(contract::kFormatVersion) + " or " + std::to_string(contract::kNestedFormatVersion),
               a.format_version > contract::kNestedFormatVersion
                   ? "The file is newer than this library: update onnx-bcq."
                   : kExportAgain);
  }
  if (a.layout != contract::kLayout) return got("layout", quoted(a.layout), quoted(contract::kLayout), kExportAgain);
  return {};
}

}  // namespace

std::string check_attributes(const Attributes& a) {
  std::string error = check_format(a);
  if (error.empty()) error = check_range("bits", a.bits, contract::kMinBits, contract::kMaxBits);
  if (error.empty()) error = check_range("K", a.K, 1, kLargest);
  if (error.empty()) error = check_range("N", a.N, 1, kLargest);
  if (error.empty()) error = check_group_size(a);
  if (error.empty()) error = check_range("accuracy_level", a.accuracy_level, 0, 4);
  if (error.empty() && !is_lower_hex_sha256(a.code_hash)) {
    error = got("code_hash", quoted(a.code_hash), "64 lower-case hexadecimal digits", kExportAgain);
  }
  return error;
}

std::string check_codes(const Attributes& a, Shape shape) {
  int64_t expected[] = {tiles(a), chunks(a), a.bits, contract::kTileRows};
  if (a.format_version != contract::kNestedFormatVersion) return check_shape("codes", shape, {expected, 4});
  if (shape.rank == 4 && shape.dims[2] == a.bits) {
    return got("format_version", std::to_string(a.format_version),
               std::to_string(contract::kFormatVersion) + " where a node reads all planes of its codes", kExportAgain);
  }
  expected[2] = contract::kMaxBits;
  if (shape.rank == 4 && a.bits < shape.dims[2] && shape.dims[2] < contract::kMaxBits) expected[2] = shape.dims[2];
  const std::string alternative = " or fewer planes, more than the " + std::to_string(a.bits) + " that are read";
  return check_shape("codes", shape, {expected, 4}, alternative.c_str());
}

std::string check_alpha_1(const Attributes& a, Shape shape) {
  const int64_t expected[] = {tiles(a), groups(a), contract::kTileRows};
  return check_shape("alpha_1", shape, {expected, 3});
}

std::string check_alpha_rest(const Attributes& a, Shape shape) {
  const int64_t expected[] = {tiles(a), groups(a), a.bits - 1, contract::kTileRows};
  return check_shape("alpha_rest", shape, {expected, 4});
}

std::string check_offset(const Attributes& a, Shape shape) {
  if (shape.rank == 1 && shape.dims[0] == 0) return {};
  const int64_t expected[] = {tiles(a), groups(a), contract::kTileRows};
  return check_shape("offset", shape, {expected, 3}, " or [0]");
}

std::string check_padding(const Attributes& a, const uint32_t* codes) {
  if (a.N % contract::kTileRows != 0) {
    const std::string error = check_row_padding(a, codes, tiles(a) - 1, a.N % contract::kTileRows);
    if (!error.empty()) return error;
  }
  const int64_t used = a.K % contract::kWordBits;
  for (int64_t tile = 0; used != 0 && tile < tiles(a); ++tile) {
    const std::string error = check_input_padding(a, codes, tile, used);
    if (!error.empty()) return error;
  }
  return {};
}

std::string check_activation(const Attributes& a, Shape shape) {
  if (shape.rank >= 1 && shape.dims[shape.rank - 1] == a.K) return {};
  return got("A shape", text_of(shape), "[..., " + std::to_string(a.K) + "]",
             "Feed an activation whose last dimension is K.");
}

int64_t checked_product(const int64_t* dims, size_t count, int64_t bytes) {
  int64_t product = 1;
  int64_t total = bytes;
  bool empty = false, overflows = false;
  for (size_t i = 0; i < count; ++i) {
    if (dims[i] < 0) return -1;
    empty = empty || dims[i] == 0;
    overflows = overflows || __builtin_mul_overflow(product, dims[i], &product) ||
                __builtin_mul_overflow(total, dims[i], &total);
  }
  if (empty) return 0;  // whatever the others are
  return overflows ? -1 : product;
}

}  // namespace bcq
