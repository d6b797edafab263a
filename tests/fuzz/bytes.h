// SPDX-License-Identifier: Apache-2.0
// The fuzzer's bytes as numbers, texts and choices; when they end, everything is zero.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace fuzz {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  bool empty() const { return left_ == 0; }

  template <typename T>
  T number() {
    T value = 0;
    const size_t size = left_ < sizeof value ? left_ : sizeof value;
    std::memcpy(&value, data_, size);
    skip(size);
    return value;
  }

  // From least to most, both included.
  int64_t between(int64_t least, int64_t most) {
    return least + int64_t(number<uint32_t>() % uint64_t(most - least + 1));
  }

  bool flag() { return (number<uint8_t>() & 1) != 0; }

  std::string text(size_t longest) {
    const size_t wanted = number<uint8_t>() % (longest + 1);
    const size_t size = left_ < wanted ? left_ : wanted;
    std::string value(reinterpret_cast<const char*>(data_), size);
    skip(size);
    return value;
  }

 private:
  void skip(size_t size) {
    data_ += size;
    left_ -= size;
  }

  const uint8_t* data_;
  size_t left_;
};

// A finding: says what and stops the fuzzer.
[[noreturn]] inline void found(const std::string& what) {
  std::fprintf(stderr, "FOUND: %s\n", what.c_str());
  std::abort();
}

}  // namespace fuzz
