// SPDX-License-Identifier: Apache-2.0
// com.microsoft.RotaryEmbedding: pairs of a head's values are rotated by the angles of their token.
#include "native/operator.h"

namespace bcq::native {
namespace {

class Rotary : public Operator {
 public:
  explicit Rotary(NodeReader& node)
      : rotated_(node.number("rotary_embedding_dim", 0)), heads_(node.number("num_heads", 0)), x_(node.input(0)),
        positions_(node.input(1)), cosines_(node.input(2)), sines_(node.input(3)), y_(node.output()) {
    if (node.number("interleaved", 0) != 0) throw Wrong("interleaved: got 1, expected 0 without onnxruntime");
    node.real("scale", 1.0f);  // the operator does not use it
    node.number("is_packed_batching", 0);
  }

  void shape(Values& values) const override {
    const Tensor &x = values[x_], &cosines = values[cosines_], &sines = values[sines_], &at = values[positions_];
    const bool floats = x.type == Type::kFloat && cosines.type == Type::kFloat && sines.type == Type::kFloat;
    if (!floats || at.type != Type::kInteger || x.dims.rank != 3 || at.count() != x.rows()) {
      throw Wrong("got shapes " + x.dims.text() + " and " + at.dims.text() + ", expected [1, rows, ...] and [1, rows]");
    }
    const int64_t half = cosines.last(), head = head_size(values);
    if (cosines.dims.rank != 2 || !(cosines.dims == sines.dims) || half == 0 || head < 2 * half || x.last() % head != 0 ||
        (rotated_ != 0 && rotated_ != 2 * half)) {
      throw Wrong("got cosines " + cosines.dims.text() + " for " + x.dims.text() + ", which do not fit");
    }
    for (int64_t i = 0; i < at.count(); ++i) {
      if (at.integers()[i] < 0 || at.integers()[i] >= cosines.rows()) {
        throw Wrong("positions: got " + std::to_string(at.integers()[i]) + ", expected 0 to " +
                    std::to_string(cosines.rows() - 1));
      }
    }
    values.make(y_, Type::kFloat, Dims(x.dims));
  }

  void run(Values& values, const Work& work) const override {
    const Tensor &x = values[x_], &cosines = values[cosines_];
    const int64_t n = x.last(), half = cosines.last(), head = head_size(values);
    work.team.share_rows(x.rows(), n, [&](int64_t begin, int64_t end, size_t) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t angle = values[positions_].integers()[i] * half;
        for (int64_t h = 0; h < n; h += head) {
          rotate(values[y_].floats() + i * n + h, x.floats() + i * n + h, cosines.floats() + angle,
                 values[sines_].floats() + angle, half, head);
        }
      }
    });
  }

 private:
  int64_t head_size(const Values& values) const {
    const int64_t n = values[x_].last();
    if (rotated_ == 0) return 2 * values[cosines_].last();
    if (heads_ < 1 || n % heads_ != 0) throw Wrong("num_heads: got " + std::to_string(heads_));
    return n / heads_;
  }

  static void rotate(float* __restrict y, const float* __restrict x, const float* __restrict cosine,
                     const float* __restrict sine, int64_t half, int64_t head) {
    for (int64_t i = 0; i < half; ++i) {
      y[i] = x[i] * cosine[i] - x[half + i] * sine[i];
      y[half + i] = x[half + i] * cosine[i] + x[i] * sine[i];
    }
    for (int64_t i = 2 * half; i < head; ++i) y[i] = x[i];
  }

  const int64_t rotated_, heads_;
  const int x_, positions_, cosines_, sines_, y_;
};

}  // namespace

std::unique_ptr<Operator> make_rotary(NodeReader& node) {
  const bool is_one = node.node().domain == "com.microsoft" && node.node().op == "RotaryEmbedding";
  return is_one ? std::make_unique<Rotary>(node) : nullptr;
}

}  // namespace bcq::native
