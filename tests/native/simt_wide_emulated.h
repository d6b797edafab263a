// SPDX-License-Identifier: Apache-2.0
// What runtime/cuda/simt_wide.h asks of a GPU, on a CPU: the descriptor is taken apart and the swizzle applied as the PTX
// manual has them. Instructions are computed at once, or, with BCQ_CUDA_REVERSED=1, as late as their wait allows, from
// what registers and shared memory hold by then: overwritten too early, they change results. Sums are garbage until
// they have been waited for, and stores that nobody showed to the instructions end the program at the next barrier.
#pragma once

#include <map>

namespace bcq::simt {

constexpr uint32_t kSharedBegins = 0x410;  // so that kernels must align their operands themselves
constexpr int kGroupLanes = 128;

struct WideInstruction {
  float* sums;
  const uint32_t* a;
  uint64_t operand;
  bool adds, brain;
};

// Of one thread: instructions in groups, the oldest first, and the sums that are still to appear.
struct WideThread {
  std::vector<std::vector<WideInstruction>> groups{1};
  std::map<float*, std::vector<float>> hidden;
};

struct WideGroup {
  uint32_t a[2][kGroupLanes][4];
  int arrived = 0;
  unsigned round = 0;
};

struct WideBlock {
  std::vector<WideThread> threads;
  std::vector<WideGroup> groups;
};

// A block's state ends with the launch that made it.
inline WideBlock& wide_block() {
  static std::map<const void*, WideBlock>& all = *new std::map<const void*, WideBlock>;
  Block& b = block();
  WideBlock& mine = all[&b];
  if (b.fresh) {
    b.fresh = false;
    mine.threads.assign(size_t(b.threads), {});
    mine.groups.assign(size_t(b.threads + kGroupLanes - 1) / kGroupLanes, {});
  }
  return mine;
}
inline WideThread& wide_thread() { return wide_block().threads[size_t(thread())]; }

inline uint32_t shared_address(const void* pointer) {
  return kSharedBegins + uint32_t(static_cast<const unsigned char*>(pointer) - block().memory);
}
inline void store_operand(uint32_t address, uint32_t word) {
  if (address % sizeof word != 0 || address < kSharedBegins) std::abort();
  std::memcpy(block().memory + (address - kSharedBegins), &word, sizeof word);
  block().unshown[size_t(thread())] = true;
}
inline void show_operands() { block().unshown[size_t(thread())] = false; }
inline void store_global2(void* to, const Words2& w) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof w != 0) std::abort();
  std::memcpy(to, &w, sizeof w);
}

// Every lane of four warps brings its registers and sees those of all.
inline const uint32_t (*meet_wide(const uint32_t* a))[4] {
  WideGroup& m = wide_block().groups[size_t(thread() / kGroupLanes)];
  const unsigned round = m.round;
  std::memcpy(m.a[round & 1][thread() % kGroupLanes], a, 4 * sizeof *a);
  if (++m.arrived == kGroupLanes) {
    m.arrived = 0;
    ++m.round;
  } else {
    while (m.round == round) let_others_run();
  }
  return m.a[round & 1];
}

inline float sixteen_bits(uint32_t word, int element, bool brain) {
  const uint16_t bits = uint16_t(word >> 16 * element);
  return brain ? brain_to_float(bits) : half_to_float(bits);
}

// Input k of column n of the second operand: 8 columns of 128 bytes are a group, units of 16 bytes are exchanged by
// address bits 7 to 9, and groups lie as far apart as the descriptor says.
inline float second_operand(uint64_t operand, int n, int k, bool brain) {
  const uint32_t start = uint32_t(operand & 0x3fffu) << 4, group_bytes = uint32_t(operand >> 32 & 0x3fffu) << 4;
  if (operand >> 62 != 1 || (operand >> 49 & 7u) != 0) std::abort();
  const uint32_t plain = start + uint32_t(n / 8) * group_bytes + uint32_t(n % 8) * 128 + uint32_t(k) * 2;
  const uint32_t address = plain ^ (plain >> 7 & 7u) << 4;
  uint16_t bits;
  std::memcpy(&bits, block().memory + (address - kSharedBegins), sizeof bits);
  return sixteen_bits(bits, 0, brain);
}

inline void compute_wide(const WideInstruction& i) {
  const auto lanes = meet_wide(i.a);
  const int lane = thread() % kGroupLanes, warp = lane / 32, g = lane % 32 / 4, t = lane % 4;
  std::vector<float>& sums = wide_thread().hidden[i.sums];
  if (!i.adds) sums.assign(64, 0.0f);
  for (int k = 0; k < 16; ++k) {
    // Rows g and g + 8 of the warp; inputs 2 t', 2 t' + 1 in the first two registers, those 8 further in the others.
    const uint32_t* const from = lanes[warp * 32 + g * 4 + k % 8 / 2];
    const float low = sixteen_bits(from[k / 8 * 2], k % 2, i.brain), high = sixteen_bits(from[k / 8 * 2 + 1], k % 2, i.brain);
    for (int n = 0; n < 16; ++n) {
      for (int e = 0; e < 2; ++e) {
        const float b = second_operand(i.operand, 8 * n + 2 * t + e, k, i.brain);
        sums[size_t(4 * n + e)] += low * b;
        sums[size_t(4 * n + 2 + e)] += high * b;
      }
    }
  }
}

inline void wide_begin() {}
template <bool brain>
void wide_multiply(float (&c)[64], const uint32_t (&a)[4], uint64_t operand, bool adds) {
  const WideInstruction instruction{c, a, operand, adds, brain};
  for (float& sum : c) sum = bits_to_float(0x7fc00000u);
  if (std::getenv("BCQ_CUDA_REVERSED") != nullptr) wide_thread().groups.back().push_back(instruction);
  else compute_wide(instruction);
}
inline void wide_commit() { wide_thread().groups.emplace_back(); }
template <int n>
void wide_wait() {
  auto& groups = wide_thread().groups;
  while (groups.size() > n + 1) {
    for (const WideInstruction& instruction : groups.front()) compute_wide(instruction);
    groups.erase(groups.begin());
  }
}
inline void wide_finish(float (&c)[64]) {
  if (wide_thread().groups.size() != 1 || !wide_thread().groups[0].empty()) std::abort();
  std::copy_n(wide_thread().hidden[c].begin(), 64, c);
}

}  // namespace bcq::simt
