// SPDX-License-Identifier: Apache-2.0
// A value of the graph: type, shape and where it lies. There are two types: float32, and integers, which are int64 here
// whatever the file says, because they are sizes and places.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "capi/tensor_files.h"

namespace bcq::native {

using capi::FileError;
using capi::Wrong;

constexpr int kMostRank = 6;
constexpr int64_t kMostElements = int64_t(1) << 36;
constexpr int64_t kMostOfNothing = int64_t(1) << 20;  // empty rows, which loops go over all the same

enum class Type { kFloat, kInteger };

inline size_t element_bytes(Type type) { return type == Type::kFloat ? sizeof(float) : sizeof(int64_t); }

struct Dims {
  int rank = 0;
  int64_t at[kMostRank] = {};

  int64_t operator[](int axis) const { return at[axis]; }
  int64_t& operator[](int axis) { return at[axis]; }

  void push(int64_t size) {
    if (rank == kMostRank) throw Wrong("a value has more than 6 dimensions");
    at[rank++] = size;
  }

  bool operator==(const Dims& other) const {
    bool same = rank == other.rank;
    for (int i = 0; same && i < rank; ++i) same = at[i] == other.at[i];
    return same;
  }

  // The product of the dimensions [first, last); they have been checked by count().
  int64_t product(int first, int last) const {
    int64_t all = 1;
    for (int i = first; i < last; ++i) all *= at[i];
    return all;
  }

  // All elements. Throws Wrong for a dimension below 0, and where any product of them would be out of range.
  int64_t count() const {
    int64_t without_zeros = 1;
    bool has_zero = false;
    for (int i = 0; i < rank; ++i) {
      if (at[i] < 0) throw Wrong("a value has a dimension of " + std::to_string(at[i]));
      has_zero |= at[i] == 0;
      const int64_t size = at[i] == 0 ? 1 : at[i];
      if (without_zeros > kMostElements / size) throw Wrong("a value of shape " + text() + " has more than 2^36 elements");
      without_zeros *= size;
    }
    if (has_zero && without_zeros > kMostOfNothing) throw Wrong("a value of shape " + text() + " is empty and too large");
    return has_zero ? 0 : without_zeros;
  }

  std::string text() const {
    std::string all = "[";
    for (int i = 0; i < rank; ++i) all += (i == 0 ? "" : ", ") + std::to_string(at[i]);
    return all + "]";
  }
};

struct Tensor {
  Type type = Type::kFloat;
  Dims dims;
  void* data = nullptr;  // null before it is computed, and for floats while memory is planned

  int64_t count() const { return dims.product(0, dims.rank); }
  int64_t last() const { return dims.rank == 0 ? 1 : dims[dims.rank - 1]; }
  int64_t rows() const { return dims.product(0, dims.rank == 0 ? 0 : dims.rank - 1); }
  float* floats() const { return static_cast<float*>(data); }
  int64_t* integers() const { return static_cast<int64_t*>(data); }
};

}  // namespace bcq::native
