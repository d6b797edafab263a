// SPDX-License-Identifier: Apache-2.0
#include "ort/resident.h"

#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "core/dispatch.h"
#include "core/memory.h"
#include "kernels/bcq_matmul/kernel.h"
#include "ort/node.h"

namespace bcq::ort {
namespace {

using Key = std::tuple<std::string, uintptr_t, int64_t, int64_t, int32_t>;  // hash, order, N, K, bits
using Copies = std::multimap<Key, std::weak_ptr<const uint32_t>>;

// Words of one tile with so many planes.
size_t words_of_tile(const BcqMatMulProblem& p, int64_t planes) {
  return size_t((p.K + kWordBits - 1) / kWordBits) * size_t(planes) * kTileRows;
}

int64_t tiles(const BcqMatMulProblem& p) { return (p.N + kTileRows - 1) / kTileRows; }

// Kernels with one function for a line have one order; 0 is that of the disk.
uintptr_t order_of(const char* kernel) {
  const MatMulKernel* found = find_matmul(kernel);
  return found == nullptr ? 0 : reinterpret_cast<uintptr_t>(found->order_line);
}

void copy(const BcqMatMulProblem& problem, const char* kernel, uint32_t* to) {
  const char* failure = bcq_matmul_make_resident(&problem, kernel, to);
  if (failure != nullptr) throw Refusal{failure};
}

// Whether `held` is what a copy of problem.codes would be.
bool is_copy(const BcqMatMulProblem& problem, const char* kernel, const uint32_t* held) {
  const size_t words = words_of_tile(problem, problem.bits);
  const size_t stored = words_of_tile(problem, problem.planes);
  std::vector<uint32_t> buffer(words + kTileRows);
  uint32_t* aligned = reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) & ~uintptr_t(63));
  BcqMatMulProblem tile = problem;
  tile.N = kTileRows;
  for (int64_t i = 0; i < tiles(problem); ++i, tile.codes += stored, held += words) {
    copy(tile, kernel, aligned);
    if (std::memcmp(aligned, held, words * sizeof(uint32_t)) != 0) return false;
  }
  return true;
}

std::shared_ptr<const uint32_t> find(const Copies& copies, const Key& key, const BcqMatMulProblem& problem,
                                     const char* kernel) {
  const auto range = copies.equal_range(key);
  for (auto entry = range.first; entry != range.second; ++entry) {
    std::shared_ptr<const uint32_t> held = entry->second.lock();
    if (held != nullptr && is_copy(problem, kernel, held.get())) return held;
  }
  return nullptr;
}

std::shared_ptr<const uint32_t> make(const BcqMatMulProblem& problem, const char* kernel, bool sparing) {
  const size_t bytes = resident_bytes(problem);
  if (sparing && !fits(bytes, blocks_bytes(), available_bytes())) return nullptr;
  const auto block = std::static_pointer_cast<uint32_t>(allocate_block(bytes));
  if (block != nullptr) copy(problem, kernel, block.get());
  return block;
}

void forget_gone(Copies& copies) {
  for (auto entry = copies.begin(); entry != copies.end();) {
    entry = entry->second.expired() ? copies.erase(entry) : std::next(entry);
  }
}

}  // namespace

size_t resident_bytes(const BcqMatMulProblem& problem) {
  return size_t(tiles(problem)) * words_of_tile(problem, problem.bits) * sizeof(uint32_t);
}

std::shared_ptr<const uint32_t> resident_codes(const BcqMatMulProblem& problem, const char* kernel,
                                               const std::string& code_hash, bool sparing) {
  static std::mutex& mutex = *new std::mutex;
  static Copies& copies = *new Copies;
  // Held while codes are copied, so sessions that open at the same time copy one after the other: two of one model then
  // make one copy, and what one takes is seen by the other's look at the memory that is left.
  const std::lock_guard<std::mutex> lock(mutex);
  const Key key{code_hash, order_of(kernel), problem.N, problem.K, problem.bits};
  std::shared_ptr<const uint32_t> held = find(copies, key, problem, kernel);
  if (held == nullptr) {
    held = make(problem, kernel, sparing);
    if (held == nullptr) return nullptr;
    forget_gone(copies);
    copies.emplace(key, held);
  }
  const size_t stored = size_t(tiles(problem)) * words_of_tile(problem, problem.planes) * sizeof(uint32_t);
  release_file_pages(problem.codes, stored);
  return held;
}

}  // namespace bcq::ort
