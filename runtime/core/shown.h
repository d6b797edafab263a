// SPDX-License-Identifier: Apache-2.0
// Text of a file as it may stand in a message: short, no control characters, valid UTF-8.
#pragma once

#include <cstddef>
#include <string>

namespace bcq {

// Bytes of the UTF-8 character at `at`, or 0 when there is none: messages reach programs that refuse other bytes.
inline size_t utf8_length(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(at);
  const size_t length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  const unsigned second = byte(at + 1);
  const bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
  const bool outside = (first == 0xed && second >= 0xa0) || (first == 0xf4 && second >= 0x90);
  return overlong || outside ? 0 : length;
}

// At most `longest` bytes, cut between characters; what is no text becomes "?".
inline std::string shown(const std::string& from, size_t longest = 200) {
  std::string text;
  for (size_t at = 0; at < from.size();) {
    const size_t length = utf8_length(from, at);
    const bool control = static_cast<unsigned char>(from[at]) < 0x20 || from[at] == 0x7f;
    const std::string next = length == 0 || control ? "?" : from.substr(at, length);
    if (text.size() + next.size() > longest) break;
    text += next;
    at += length == 0 ? 1 : length;
  }
  return text;
}

}  // namespace bcq
