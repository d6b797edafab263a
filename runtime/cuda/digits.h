// SPDX-License-Identifier: Apache-2.0
// The kernel for one or two rows of A: exact integer products on the tensor cores.
//
// A step of activations shares a power of two as scale; each becomes a 24-bit integer v. A plane's words, masked to one
// bit of each byte, are bytes 0 or 2^r: one AND makes four of them, and they are the first operand. Their weight differs
// by bit, so the second operand holds v 2^(7 - r), as four signed digits in base 256 in four columns. The sums are exact
// in int32: S = 128 sum of bit * v, digit by digit. With P = 128 sum of v, sum of (+-1) v = (2 S - P) / 128.
#pragma once

#include "cuda/problem.h"

namespace bcq::cuda {

constexpr int kDigits = 4;
constexpr int kDigitsWarps = 8;
constexpr float kUnit = 1.0f / 128.0f;    // of 2 S - P
constexpr float kHighPair = 65536.0f;     // the upper two digits of four

// Which steps the block's shared memory holds at once.
struct DigitsPlan {
  int panel_steps;  // a multiple of the warps of a block
};

template <int tokens>
struct DigitsMemory {
  static constexpr int kLanes = 4 * kDigits * tokens;  // that have a column of activations

  template <int span>
  BCQ_HD static int step_bytes() {
    return int(sizeof(uint32_t)) * (Steps<span>::fragment_words(kLanes) + 3 * tokens);
  }
  BCQ_HD static int part_bytes(int warps) { return int(sizeof(float)) * 2 * warps * tokens * kBlockRows; }

  uint32_t* fragments;  // [steps][...] in the order of Steps::fragment_at
  float* scales;        // [steps][tokens]
  float* pairs;         // [steps][tokens][2]: P of the lower and of the upper two digits
  float* parts;         // [2][warps][tokens][32 rows]
};

template <int span, int tokens>
BCQ_DEVICE DigitsMemory<tokens> digits_memory(int panel_steps) {
  DigitsMemory<tokens> m;
  m.fragments = reinterpret_cast<uint32_t*>(simt::shared());
  m.scales = reinterpret_cast<float*>(m.fragments + panel_steps * Steps<span>::fragment_words(m.kLanes));
  m.pairs = m.scales + panel_steps * tokens;
  m.parts = m.pairs + panel_steps * tokens * 2;
  return m;
}

// A step's scale from its largest magnitude as an integer: v = a * first * to, a = v * back. Two factors, because one
// would overflow for the smallest activations. Infinity and NaN make `back` NaN.
struct DigitScale {
  float first;
  float to;
  float back;
};
BCQ_DEVICE DigitScale digit_scale(int largest_bits) {
  const int exponent = largest_bits >> 23;
  if (exponent == 255) return {0.0f, 0.0f, simt::as_float(0x7fc00000u)};
  const int used = exponent < 1 ? 1 : exponent;
  const bool small = used < 64;
  const float to = simt::as_float(uint32_t((small ? 212 : 276) - used) << 23);
  // 2^(used - 149), a subnormal number where need be.
  const float back = simt::as_float(used < 23 ? 1u << used : uint32_t(used - 22) << 23);
  return {small ? 18446744073709551616.0f : 1.0f, to, back};  // 2^64
}

// The four signed digits of an integer in base 256, one in each byte.
BCQ_DEVICE uint32_t digits_of(uint32_t value) { return (value + 0x80808080u) ^ 0x80808080u; }

// Digits of four inputs of one token into the fragments. Lanes of 8 * span share a step; lanes of steps behind the panel
// only keep the others company.
template <int span, int tokens>
BCQ_DEVICE void prepare_quad(const DigitsMemory<tokens>& memory, bool inside, int step, int within, int token,
                             const float (&a)[4]) {
  using S = Steps<span>;
  int largest = 0;
  BCQ_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int bits = int(simt::as_bits(a[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  const DigitScale scale = digit_scale(simt::reduce_max<8 * span>(largest));
  const int r = S::quad_register(within % 8);
  uint32_t digits[4];
  BCQ_UNROLL
  for (int i = 0; i < 4; ++i) {
    digits[i] = digits_of(uint32_t(simt::nearest(a[i] * scale.first * scale.to)) << (7 - r));
  }
  // Byte i of a register is input i: a transposition of four by four bytes.
  const uint32_t x = simt::permute(digits[0], digits[1], 0x5140), y = simt::permute(digits[2], digits[3], 0x5140);
  const uint32_t u = simt::permute(digits[0], digits[1], 0x7362), v = simt::permute(digits[2], digits[3], 0x7362);
  const uint32_t registers[kDigits] = {simt::permute(x, y, 0x5410), simt::permute(x, y, 0x7632),
                                       simt::permute(u, v, 0x5410), simt::permute(u, v, 0x7632)};
  const int t = S::quad_lane(within / 8, within % 8);
  BCQ_UNROLL
  for (int d = 0; d < kDigits; ++d) {
    if (inside) memory.fragments[S::fragment_at(memory.kLanes, step, (token * kDigits + d) * 4 + t, r)] = registers[d];
  }
  const int low = simt::reduce_add<8 * span>((simt::sum_bytes(registers[0]) + 256 * simt::sum_bytes(registers[1])) << r);
  const int high = simt::reduce_add<8 * span>((simt::sum_bytes(registers[2]) + 256 * simt::sum_bytes(registers[3])) << r);
  if (within != 0 || !inside) return;
  memory.scales[step * tokens + token] = scale.back;
  memory.pairs[(step * tokens + token) * 2] = float(low);
  memory.pairs[(step * tokens + token) * 2 + 1] = float(high);
}

// Steps [first, first + count) of the block's tokens; every warp takes 32 quads of inputs at a time.
template <int span, int tokens>
BCQ_DEVICE void prepare_panel(const MatMul& p, const DigitsMemory<tokens>& memory, int first, int count) {
  constexpr int quads = 8 * span;
  const int total = (count * quads + kWarp - 1) / kWarp * kWarp;
  for (int quad = simt::thread(); quad < total; quad += simt::threads()) {
    const int step = quad / quads, within = quad % quads;
    const int k = ((first + step) * span + within / 8) * kWordBits + within % 8;
    BCQ_UNROLL
    for (int token = 0; token < tokens; ++token) {
      const int64_t m = int64_t(simt::block_y()) * tokens + token;
      float a[4];
      BCQ_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = m < p.given.M && k + 8 * i < p.layout.K ? activation(p, m, k + 8 * i) : 0.0f;
      prepare_quad<span>(memory, step < count, step, within, token, a);
    }
  }
}

// What a lane needs of one step, on its way from memory.
template <int planes>
struct StepWords {
  Words4 words[planes];
  Words2 alphas[planes];
  Words2 offset;
};

// The steps of a warp, one after the other through its row blocks. What lies behind the last chunk or row is read from
// the last one: its activations are zero, or nobody stores its result.
template <int planes, int span>
class StepLoader {
 public:
  BCQ_DEVICE StepLoader(const MatMul& p, int row_block, int warp, int lane)
      : p_(p), lane_(lane), warp_(warp), row_block_(row_block), step_(warp) {
    point();
  }

  BCQ_DEVICE Words4 words(int plane) const {
    return simt::load_once(p_.given.codes + 4 * size_t(words_) + kTileRows * plane);
  }
  BCQ_DEVICE Words2 alphas(int plane) const {
    if (plane == 0) return simt::load2(p_.given.alpha_1 + 4 * size_t(factors_));
    return simt::load2(p_.given.alpha_rest + 4 * size_t(rest_) + kTileRows * (plane - 1));
  }
  BCQ_DEVICE Words2 offset() const { return simt::load2(p_.given.offset + 4 * size_t(factors_)); }

  BCQ_DEVICE void advance(int warps) {
    step_ += warps;
    if (step_ >= Steps<span>::count(p_.layout)) {
      row_block_ += simt::blocks_x();
      step_ = warp_;
    }
    point();
  }

 private:
  BCQ_DEVICE void point() {
    const Layout& l = p_.layout;
    const LaneRows rows = lane_rows(lane_);
    const int last_tile = tiles(l) - 1, last_chunk = l.chunks - 1;
    const int tile = 2 * row_block_ + rows.tile, chunk = step_ * span + Steps<span>::lane_chunk(lane_ & 3);
    const int inside = tile < last_tile ? tile : last_tile, group = group_of(l, step_ * span);
    words_ = word_unit(l, inside, chunk < last_chunk ? chunk : last_chunk, rows.row);
    factors_ = factor_unit(l, inside, group, rows.row);
    rest_ = rest_unit(l, inside, group, rows.row);
  }

  const MatMul& p_;
  const int lane_;
  const int warp_;
  int row_block_;
  int step_;
  uint32_t words_;  // in units of four rows, see walk.h
  uint32_t factors_;
  uint32_t rest_;
};

// Sums of one plane over a step: for each of the lane's four rows, its two columns of digits as one integer.
template <int span>
BCQ_DEVICE void plane_sums(const Words4& words, const uint32_t (&b)[Steps<span>::kRegisters], int shift, int (&sums)[4]) {
  BCQ_UNROLL
  for (int f = 0; f < 2; ++f) {
    int c[4];
    const uint32_t first = words.at[2 * f] >> shift, second = words.at[2 * f + 1] >> shift;
    BCQ_UNROLL
    for (int r = 0; r < Steps<span>::kRegisters; r += 2) {
      const uint32_t a[4] = {masked(first, r), masked(second, r), masked(first, r + 1), masked(second, r + 1)};
      if (r == 0) simt::mma_bytes_first(c, a, b[r], b[r + 1]);
      else simt::mma_bytes(c, a, b[r], b[r + 1]);
    }
    sums[2 * f] = c[0] + 256 * c[1];
    sums[2 * f + 1] = c[2] + 256 * c[3];
  }
}

// The activations of a step in the columns of a lane; lanes of columns that nobody uses repeat others.
template <int span, int tokens>
BCQ_DEVICE void load_fragments(const DigitsMemory<tokens>& memory, int step, int lane,
                               uint32_t (&b)[Steps<span>::kRegisters]) {
  using S = Steps<span>;
  const int from = lane % memory.kLanes;
  if constexpr (S::kRegisters == 2) {
    const Words2 w = simt::shared2(memory.fragments + S::fragment_at(memory.kLanes, step, from, 0));
    b[0] = w.at[0], b[1] = w.at[1];
  } else {
    BCQ_UNROLL
    for (int r = 0; r < S::kRegisters; r += 4) {
      const Words4 w = simt::shared4(memory.fragments + S::fragment_at(memory.kLanes, step, from, r));
      b[r] = w.at[0], b[r + 1] = w.at[1], b[r + 2] = w.at[2], b[r + 3] = w.at[3];
    }
  }
}

// y += scale * (sum of alpha (2 S - P) + offset P), for the lane's rows and its pair of digits. As soon as a register
// of `s` has been used, the same of the next step is on its way into it.
template <int planes, int span, int tokens>
BCQ_DEVICE void add_step(const DigitsMemory<tokens>& memory, StepWords<planes>& s, const StepLoader<planes, span>& next,
                         bool has_offset, int step, int lane, float (&y)[4]) {
  const int t = lane & 3;
  uint32_t b[Steps<span>::kRegisters];
  load_fragments<span>(memory, step, lane, b);
  float sums[4] = {}, rest[4] = {};
  if (has_offset) {
    BCQ_UNROLL
    for (int j = 0; j < 4; ++j) rest[j] = half_of(s.offset, j);
    s.offset = next.offset();
  }
  BCQ_UNROLL
  for (int i = 0; i < planes; ++i) {
    int plane[4];
    plane_sums<span>(s.words[i], b, span == 4 ? 0 : Steps<span>::shift(t), plane);
    s.words[i] = next.words(i);
    BCQ_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float alpha = half_of(s.alphas[i], j);
      sums[j] = simt::fused(alpha, float(plane[j]), sums[j]);
      rest[j] -= alpha;
    }
    s.alphas[i] = next.alphas(i);
  }
  const float scale = memory.scales[step * tokens + (tokens == 1 ? 0 : t >> 1)];
  const float pair = memory.pairs[step * tokens * 2 + (tokens == 1 ? t & 1 : t)];
  BCQ_UNROLL
  for (int j = 0; j < 4; ++j) y[j] = simt::fused(scale, simt::fused(2.0f, sums[j], rest[j] * pair), y[j]);
}

// Adds up the warps' results in their order and writes the outputs of one row block.
template <int tokens>
BCQ_DEVICE void finish_rows(const MatMul& p, float* parts, int row_block, const float (&y)[4]) {
  const int warp = simt::thread() / kWarp, lane = simt::thread() % kWarp, t = lane & 3;
  BCQ_UNROLL
  for (int j = 0; j < 4; ++j) {
    const float high = simt::shuffle_xor(y[j], 1);
    if ((t & 1) == 0 && t / 2 < tokens) {
      parts[(warp * tokens + t / 2) * kBlockRows + lane_first_row(lane) + j] = kUnit * simt::fused(kHighPair, high, y[j]);
    }
  }
  simt::sync();
  for (int i = simt::thread(); i < tokens * kBlockRows; i += simt::threads()) {
    const int64_t m = int64_t(simt::block_y()) * tokens + i / kBlockRows, n = int64_t(row_block) * kBlockRows + i % kBlockRows;
    float sum = 0.0f;
    for (int w = 0; w < simt::threads() / kWarp; ++w) sum += parts[w * tokens * kBlockRows + i];
    if (m < p.given.M && n < p.layout.N) store_value(p.given.y, size_t(m * p.given.y_stride + n), p.given.type, sum);
  }
}

template <int planes, int span, int tokens>
BCQ_KERNEL(kDigitsWarps * kWarp, 3) digits_kernel(MatMul p, DigitsPlan plan) {
  const int warp = simt::thread() / kWarp, lane = simt::thread() % kWarp, warps = simt::threads() / kWarp;
  const int steps = Steps<span>::count(p.layout);
  const DigitsMemory<tokens> memory = digits_memory<span, tokens>(plan.panel_steps);
  StepLoader<planes, span> loader(p, simt::block_x(), warp, lane);
  StepWords<planes> words = {};
  BCQ_UNROLL
  for (int i = 0; i < planes; ++i) {
    words.words[i] = loader.words(i);
    words.alphas[i] = loader.alphas(i);
  }
  if (p.given.offset != nullptr) words.offset = loader.offset();
  int held = -1, parity = 0;
  for (int row_block = simt::block_x(); row_block < row_blocks(p.layout); row_block += simt::blocks_x(), parity ^= 1) {
    float y[4] = {};
    for (int first = 0; first < steps; first += plan.panel_steps) {
      const int end = first + plan.panel_steps < steps ? first + plan.panel_steps : steps;
      if (first != held) {
        simt::sync();  // nobody reads the last panel any more
        prepare_panel<span, tokens>(p, memory, first, end - first);
        simt::sync();
        held = first;
      }
      for (int step = first + warp; step < end; step += warps) {
        loader.advance(warps);
        add_step<planes, span, tokens>(memory, words, loader, p.given.offset != nullptr, step - first, lane, y);
      }
    }
    finish_rows<tokens>(p, memory.parts + parity * warps * tokens * kBlockRows, row_block, y);
  }
}

}  // namespace bcq::cuda
