// SPDX-License-Identifier: Apache-2.0
#include "native/values.h"

#include <algorithm>
#include <map>

namespace bcq::native {
namespace {

// What a file can make the planning run allocate for sizes and places.
constexpr size_t kMostIntegerBytes = size_t(64) << 20;

// Blocks in use by where they begin, and where each ends.
class Blocks {
 public:
  size_t take(size_t bytes) {
    size_t at = 0;
    for (const auto& [first, last] : used_) {
      if (first - at >= bytes) break;
      at = last;
    }
    used_[at] = at + bytes;
    most_ = std::max(most_, at + bytes);
    return at;
  }
  void give_back(size_t at) { used_.erase(at); }
  size_t most() const { return most_; }

 private:
  std::map<size_t, size_t> used_;
  size_t most_ = 0;
};

}  // namespace

int Values::add(const Tensor& tensor) {
  tensors_.push_back(tensor);
  places_.emplace_back();
  return int(tensors_.size()) - 1;
}

Tensor& Values::make(int value, Type type, const Dims& dims) {
  Tensor& tensor = tensors_[size_t(value)];
  Place& place = places_[size_t(value)];
  tensor.type = type;
  tensor.dims = dims;
  const size_t bytes = size_t(dims.count()) * element_bytes(type);
  if (planning_) return make_planned(tensor, place, bytes);
  if (bytes > place.bytes) throw Wrong("a value of shape " + dims.text() + " is larger than in the longest run");
  tensor.data = arena_.data() + place.offset;
  return tensor;
}

Tensor& Values::make_planned(Tensor& tensor, Place& place, size_t bytes) {
  place = {int(&place - places_.data()), now_, bytes, 0};
  tensor.data = nullptr;
  if (tensor.type != Type::kInteger) return tensor;
  integer_bytes_ += bytes;
  if (integer_bytes_ > kMostIntegerBytes) throw Wrong("the graph's integers take more than 64 MB");
  integers_.push_back(std::make_unique<int64_t[]>(bytes / sizeof(int64_t) + 1));
  tensor.data = integers_.back().get();
  return tensor;
}

void Values::view(int value, int of, const Dims& dims) {
  const Tensor& from = tensors_[size_t(of)];
  if (dims.count() != from.count()) throw Wrong("shape: got " + dims.text() + " for " + from.dims.text());
  tensors_[size_t(value)] = {from.type, dims, from.data};
  if (planning_) places_[size_t(value)].storage = places_[size_t(of)].storage;
}

void Values::begin_plan() { planning_ = true; }

void Values::finish_plan(const std::vector<int>& last_reads) {
  planning_ = false;
  std::vector<int> dies(places_.size(), 0);
  std::map<int, std::vector<int>> born, dead;  // values by node
  for (size_t value = 0; value < places_.size(); ++value) {
    const int storage = places_[value].storage;
    if (storage >= 0) dies[size_t(storage)] = std::max(dies[size_t(storage)], last_reads[value]);
  }
  for (size_t value = 0; value < places_.size(); ++value) {
    const Place& place = places_[value];
    if (place.storage != int(value) || place.bytes == 0) continue;
    born[place.born].push_back(int(value));
    dead[std::max(place.born, dies[value])].push_back(int(value));
  }
  Blocks blocks;
  for (const auto& [node, values] : born) {
    while (!dead.empty() && dead.begin()->first < node) {
      for (const int value : dead.begin()->second) blocks.give_back(places_[size_t(value)].offset);
      dead.erase(dead.begin());
    }
    for (const int value : values) places_[size_t(value)].offset = blocks.take(whole_lines(places_[size_t(value)].bytes));
  }
  integers_.clear();
  arena_ = Memory(blocks.most());
}

}  // namespace bcq::native
