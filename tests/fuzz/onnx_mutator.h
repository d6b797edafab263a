// SPDX-License-Identifier: Apache-2.0
// Changes the bytes of an ONNX file at one place and writes the lengths of all messages around it anew, so that a
// change reaches the reader's checks instead of ending at the first message that does not add up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace fuzz {

constexpr size_t kMostGrowth = 64;  // bytes that one change adds to a text

struct WireField {
  uint64_t tag;
  unsigned kind;
  uint64_t number;
  std::string bytes;
};

using WireMessage = std::vector<WireField>;

inline bool read_varint(const std::string& from, size_t& at, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 70 && at < from.size(); shift += 7) {
    const uint8_t byte = uint8_t(from[at++]);
    value |= uint64_t(byte & 0x7f) << (shift < 64 ? shift : 63);
    if (byte < 0x80) return true;
  }
  return false;
}

inline void write_varint(std::string& to, uint64_t value) {
  for (; value >= 0x80; value >>= 7) to += char(value | 0x80);
  to += char(value);
}

// False when the bytes are no message.
inline bool read_message(const std::string& from, WireMessage& message) {
  for (size_t at = 0; at < from.size();) {
    WireField field = {};
    uint64_t key = 0, size = 0;
    if (!read_varint(from, at, key)) return false;
    field.tag = key >> 3, field.kind = unsigned(key & 7);
    if (field.kind == 0) {
      if (!read_varint(from, at, field.number)) return false;
    } else {
      size = field.kind == 1 ? 8 : 4;
      if (field.kind == 2 && !read_varint(from, at, size)) return false;
      if ((field.kind != 1 && field.kind != 2 && field.kind != 5) || size > from.size() - at) return false;
      field.bytes = from.substr(at, size_t(size));
      at += size_t(size);
    }
    message.push_back(field);
  }
  return true;
}

inline std::string written(const WireMessage& message) {
  std::string text;
  for (const WireField& field : message) {
    write_varint(text, field.tag << 3 | field.kind);
    if (field.kind == 0) write_varint(text, field.number);
    if (field.kind == 2) write_varint(text, field.bytes.size());
    text += field.bytes;
  }
  return text;
}

class OnnxMutator {
 public:
  explicit OnnxMutator(unsigned seed) : random_(seed) {}

  // One to four changes somewhere inside; what is no message is changed as mere bytes.
  std::string changed(std::string file) {
    for (size_t left = 1 + draw(4); left != 0; --left) file = message(file, kModel);
    return file;
  }

 private:
  enum Kind { kNone, kModel, kGraph, kNode, kAttribute, kTensor, kPlace };

  static Kind below(Kind kind, uint64_t tag) {
    if (kind == kModel && tag == 7) return kGraph;
    if (kind == kGraph) return tag == 1 ? kNode : tag == 5 ? kTensor : kNone;
    if (kind == kNode && tag == 5) return kAttribute;
    return kind == kTensor && tag == 13 ? kPlace : kNone;
  }

  size_t draw(size_t count) { return random_() % count; }

  std::string message(const std::string& bytes, Kind kind) {
    WireMessage fields;
    if (draw(50) == 0 || !read_message(bytes, fields) || fields.empty()) return text(bytes);
    const size_t at = draw(fields.size());
    const Kind inner = fields[at].kind == 2 ? below(kind, fields[at].tag) : kNone;
    if (inner != kNone && draw(8) != 0) {
      fields[at].bytes = message(fields[at].bytes, inner);
    } else {
      change(fields, at);
    }
    return written(fields);
  }

  void change(WireMessage& fields, size_t at) {
    const WireField field = fields[at];
    switch (draw(10)) {
      case 0: fields.erase(fields.begin() + std::ptrdiff_t(at)); break;
      case 1: fields.insert(fields.begin() + std::ptrdiff_t(draw(fields.size() + 1)), field); break;
      case 2: std::swap(fields[at], fields[draw(fields.size())]); break;
      case 3: fields[at].tag = draw(26); break;
      case 4: fields[at].bytes = fields[draw(fields.size())].bytes; break;
      default:
        if (field.kind == 0) fields[at].number = number(field.number);
        else if (field.kind == 2) fields[at].bytes = text(field.bytes);
    }
  }

  uint64_t number(uint64_t old) {
    const uint64_t odd[] = {0, 1, 2, 3, 8, 16, 31, 32, 33, 64, 255, 0x7fffffff, 0x80000000, 0xffffffff, uint64_t(1) << 62,
                            uint64_t(1) << 63, ~uint64_t(0), old + 1, old - 1, old * 2, old / 2, old ^ 16};
    return odd[draw(sizeof odd / sizeof odd[0])];
  }

  std::string text(std::string bytes) {
    if (!bytes.empty() && bytes.find_first_not_of("0123456789") == std::string::npos && bytes.size() < 19 && draw(8)) {
      return std::to_string(number(std::stoull(bytes)));
    }
    const size_t size = bytes.size();
    bytes.resize(size + kMostGrowth);
    bytes.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(&bytes[0]), size, bytes.size()));
    return bytes;
  }

  std::minstd_rand random_;
};

}  // namespace fuzz
