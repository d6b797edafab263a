// SPDX-License-Identifier: Apache-2.0
// What runtime/cuda/simt.h asks of a GPU, on a CPU: every thread of a block is a coroutine that runs until it meets the
// others. Matrix instructions follow the fragment maps of the PTX manual, written here once more and element by element.
// Shared memory starts as garbage, and BCQ_CUDA_REVERSED=1 runs the threads in the other order: a missing barrier then
// changes results.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "core/half.h"

#define BCQ_HD inline
#define BCQ_DEVICE inline
#define BCQ_KERNEL(threads, blocks) static void
#define BCQ_UNROLL

namespace bcq::simt {

constexpr int kLanes = 32;

// One value of each lane, and how many have come; the next meeting uses the other set.
struct Meeting {
  uint64_t values[2][kLanes][6];
  int arrived = 0;
  unsigned round = 0;
};

struct Block {
  int threads = 0, current = 0, arrived = 0, x = 0, y = 0, blocks_x = 1;
  unsigned round = 0;
  std::vector<unsigned char> shared;
  unsigned char* memory = nullptr;
  std::vector<Meeting> warps;
  std::vector<ucontext_t> contexts;
  std::vector<bool> done;
  std::vector<bool> unshown;  // threads with stores that simt_wide_emulated.h waits for
  bool fresh = true;
  ucontext_t scheduler;
  std::function<void()> body;
};

inline Block& block() {
  static Block* const b = new Block;
  return *b;
}

inline int thread() { return block().current; }
inline int threads() { return block().threads; }
inline int block_x() { return block().x; }
inline int block_y() { return block().y; }
inline int blocks_x() { return block().blocks_x; }
inline unsigned char* shared() { return block().memory; }

inline void let_others_run() { swapcontext(&block().contexts[thread()], &block().scheduler); }

inline void sync() {
  Block& b = block();
  if (b.unshown[size_t(b.current)]) std::abort();
  const unsigned round = b.round;
  if (++b.arrived == b.threads) {
    b.arrived = 0;
    ++b.round;
    return;
  }
  while (b.round == round) let_others_run();
}

// Every lane brings `count` values and sees those of all lanes of its warp.
inline const uint64_t (*meet(const uint64_t* values, int count))[6] {
  Meeting& m = block().warps[size_t(thread() / kLanes)];
  const unsigned round = m.round;
  auto& set = m.values[round & 1];
  for (int i = 0; i < count; ++i) set[thread() % kLanes][i] = values[i];
  if (++m.arrived == kLanes) {
    m.arrived = 0;
    ++m.round;
  } else {
    while (m.round == round) let_others_run();
  }
  return set;
}

inline void sync_warp() { meet(nullptr, 0); }

template <typename T>
T shuffle_xor(T value, int mask) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet(&bits, 1)[(thread() % kLanes) ^ mask][0];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <int width>
int reduce_max(int value) {
  for (int mask = width / 2; mask > 0; mask /= 2) value = std::max(value, shuffle_xor(value, mask));
  return value;
}
template <int width>
int reduce_add(int value) {
  for (int mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// A device faults where an address is no multiple of the access; so does this.
template <typename T>
T load_aligned(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) std::abort();
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline Words4 load_once(const uint32_t* from) { return load_aligned<Words4>(from); }
inline Words4 load4(const void* from) { return load_aligned<Words4>(from); }
inline Words2 load2(const void* from) { return load_aligned<Words2>(from); }
template <typename T>
T load(const T* from) {
  return load_aligned<T>(from);
}
inline Words4 shared4(const uint32_t* from) { return load_aligned<Words4>(from); }
inline Words2 shared2(const uint32_t* from) { return load_aligned<Words2>(from); }
inline void store_shared4(uint32_t* to, const Words4& w) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof w != 0) std::abort();
  std::memcpy(to, &w, sizeof w);
}

inline float half_value(uint32_t bits) { return half_to_float(uint16_t(bits)); }
inline uint16_t half_bits(float value) { return float_to_half(value); }
inline float as_float(uint32_t bits) { return bits_to_float(bits); }
inline uint32_t as_bits(float value) { return float_to_bits(value); }
inline uint16_t brain_bits(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) return 0x7fff;
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline uint32_t half_pair(float low, float high) { return half_bits(low) | uint32_t(half_bits(high)) << 16; }
inline uint32_t brain_pair(float low, float high) { return brain_bits(low) | uint32_t(brain_bits(high)) << 16; }
inline int nearest(float value) { return value == value ? int(std::nearbyint(value)) : 0; }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }

inline uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = low | uint64_t(high) << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i & 15u;
    uint32_t byte = uint32_t(bytes >> 8 * (nibble & 7u) & 0xffu);
    if (nibble & 8u) byte = byte & 0x80u ? 0xffu : 0u;
    result |= byte << 8 * i;
  }
  return result;
}

inline int sum_bytes(uint32_t word) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += int8_t(word >> 8 * i);
  return sum;
}

// Fragments of m16n8k(16 | 32), k slots of `per` elements in a register: lane 4 g + t holds in a[0], a[2] row g and in
// a[1], a[3] row g + 8, inputs per * t .. in the first and per * (4 + t) .. in the second half; in b[0], b[1] the same
// inputs of column g; in c[0], c[1] row g, columns 2 t and 2 t + 1, in c[2], c[3] row g + 8.
template <int per, typename Sum, typename First, typename Second>
void mma(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, First first, Second second) {
  const uint64_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto lanes = meet(mine, 6);
  const int lane = thread() % kLanes;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8 * per; ++k) {
      const int half = k / (4 * per), t = k / per % 4, element = k % per;
      const uint32_t x = uint32_t(lanes[row % 8 * 4 + t][2 * half + row / 8]);
      const uint32_t y = uint32_t(lanes[column * 4 + t][4 + half]);
      c[i] += first(x, element) * second(y, element);
    }
  }
}

inline void mma_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma<4>(c, a, b0, b1, [](uint32_t w, int i) { return int(w >> 8 * i & 0xffu); },
         [](uint32_t w, int i) { return int(int8_t(w >> 8 * i & 0xffu)); });
}
inline void mma_bytes_first(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  c[0] = c[1] = c[2] = c[3] = 0;
  mma_bytes(c, a, b0, b1);
}
inline void mma_halves(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto value = [](uint32_t w, int i) { return half_to_float(uint16_t(w >> 16 * i)); };
  mma<2>(c, a, b0, b1, value, value);
}
inline void mma_brains(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto value = [](uint32_t w, int i) { return bits_to_float(w >> 16 * i << 16); };
  mma<2>(c, a, b0, b1, value, value);
}

inline void run_thread() {
  block().body();
  block().done[size_t(thread())] = true;
  let_others_run();
}

constexpr size_t kStack = 128 * 1024;

inline void run_block() {
  static std::vector<std::unique_ptr<char[]>>& stacks = *new std::vector<std::unique_ptr<char[]>>;
  Block& b = block();
  const bool reversed = std::getenv("BCQ_CUDA_REVERSED") != nullptr;
  while (int(stacks.size()) < b.threads) stacks.emplace_back(new char[kStack]);
  b.warps.assign(size_t(b.threads + kLanes - 1) / kLanes, {});
  b.contexts.resize(size_t(b.threads));
  b.done.assign(size_t(b.threads), false);
  b.unshown.assign(size_t(b.threads), false);
  b.fresh = true;
  b.arrived = 0;
  for (int i = 0; i < b.threads; ++i) {
    ucontext_t& context = b.contexts[size_t(i)];
    getcontext(&context);
    context.uc_stack.ss_sp = stacks[size_t(i)].get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, run_thread, 0);
  }
  for (int left = b.threads; left > 0;) {
    left = 0;
    for (int i = 0; i < b.threads; ++i) {
      b.current = reversed ? b.threads - 1 - i : i;
      if (b.done[size_t(b.current)]) continue;
      swapcontext(&b.scheduler, &b.contexts[size_t(b.current)]);
      left += !b.done[size_t(b.current)];
    }
  }
}

// A launch: blocks one after the other, the last one first in the reversed order.
template <typename... Formal, typename... Actual>
void launch(void (*kernel)(Formal...), int blocks_x, int blocks_y, int threads, size_t shared_bytes, void*,
            const Actual&... arguments) {
  Block& b = block();
  b.threads = threads;
  b.blocks_x = blocks_x;
  b.body = [&] { kernel(arguments...); };
  for (int i = 0; i < blocks_x * blocks_y; ++i) {
    b.x = i % blocks_x;
    b.y = i / blocks_x;
    b.shared.assign(shared_bytes + 16, 0xa5);
    b.memory = b.shared.data() + (16 - reinterpret_cast<uintptr_t>(b.shared.data()) % 16) % 16;
    run_block();
  }
}

}  // namespace bcq::simt
