// SPDX-License-Identifier: Apache-2.0
// com.microsoft.GroupQueryAttention over keys and values that stay in place: new ones are written behind the past, then
// each row and head is computed alone. A cache of int8 holds round(x / scale), as onnxruntime stores it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "native/lanes.h"
#include "native/math.h"
#include "native/operator.h"

namespace bcq::native {
namespace {

constexpr int64_t kMostWidth = 1024;
constexpr int64_t kAtOnce = 4;  // tokens whose values are added together

class Attention : public Operator {
 public:
  explicit Attention(NodeReader& node)
      : heads_(node.number("num_heads", 0)), scale_(node.real("scale", 0.0f)), cap_(node.real("softcap", 0.0f)),
        window_(node.number("local_window_size", -1)), query_(node.input(0)), key_(node.has(1) ? node.input(1) : -1),
        value_(node.has(2) ? node.input(2) : -1), cache_(node.past(3)), last_(node.input(5)), total_(node.input(6)),
        y_(node.output()) {
    const CacheShape values = node.past(4);
    const int64_t groups = node.number("kv_num_heads", 0);
    const bool alike = values.heads == groups && values.width == cache_.width && values.is_int8 == cache_.is_int8;
    if (heads_ < 1 || heads_ > 1 << 16 || groups < 1 || heads_ % groups != 0 || cache_.heads != groups || !alike) {
      throw Wrong("num_heads, kv_num_heads: got " + std::to_string(heads_) + " and " + std::to_string(groups) +
                  ", which do not fit the past");
    }
    if (cache_.width < 1 || cache_.width > kMostWidth) throw Wrong("past: expected heads of 1 to 1024 values");
    if ((key_ < 0) != (value_ < 0)) throw Wrong("key, value: expected both, or none where query holds all three");
    if (node.number("do_rotary", 0) != 0) throw Wrong("do_rotary: got 1, expected rotations before it");
    if (node.number("smooth_softmax", 0) > 0) throw Wrong("smooth_softmax: got 1, expected 0 without onnxruntime");
    if (scale_ == 0) scale_ = 1 / std::sqrt(float(cache_.width));
    if (window_ != -1 && window_ < 1) {
      throw Wrong("local_window_size: got " + std::to_string(window_) + ", expected 1 or more, or -1");
    }
    read_scales(node);
  }

  const CacheShape* cache() const override { return &cache_; }
  void keep_in(unsigned char* keys, unsigned char* values, int64_t room) override {
    keys_ = keys, values_ = values, room_ = room;
  }

  void shape(Values& values) const override {
    const Tensor& query = values[query_];
    const int64_t own = heads_ * cache_.width, of_others = cache_.heads * cache_.width;
    check_floats(query, key_ < 0 ? own + 2 * of_others : own, "query");
    if (key_ >= 0) {
      check_floats(values[key_], of_others, "key");
      check_floats(values[value_], of_others, "value");
      if (values[key_].rows() != query.rows() || values[value_].rows() != query.rows()) {
        throw Wrong("key, value: expected as many rows as query");
      }
    }
    if (query.dims[0] != 1) throw Wrong("query: got several texts, expected one");
    check_scale(values, key_scale_);
    check_scale(values, value_scale_);
    Dims dims = query.dims;
    dims[2] = own;
    values.make(y_, Type::kFloat, dims);
  }

  size_t scratch_bytes(const Values&, size_t threads) const override { return part_bytes() * threads; }

  void run(Values& values, const Work& work) const override {
    const Tensor& query = values[query_];
    check_lengths(values, work);
    const Rows keys = key_ < 0 ? Rows{query.floats() + heads_ * cache_.width, query.last()}
                               : Rows{values[key_].floats(), values[key_].last()};
    const Rows others = key_ < 0 ? Rows{keys.data + cache_.heads * cache_.width, query.last()}
                                 : Rows{values[value_].floats(), values[value_].last()};
    for (int64_t i = 0; i < work.rows; ++i) {
      keep(keys_, keys.data + i * keys.stride, scale_of(values, key_scale_), work.past + i);
      keep(values_, others.data + i * others.stride, scale_of(values, value_scale_), work.past + i);
    }
    work.team.share(work.rows * heads_, [&](int64_t begin, int64_t end, size_t part) {
      float* scratch = reinterpret_cast<float*>(work.scratch + part * part_bytes());
      for (int64_t i = begin; i < end; ++i) attend(values, work.past, i / heads_, i % heads_, scratch);
    });
  }

 private:
  struct Rows {
    const float* data;
    int64_t stride;
  };
  // Of a cache of int8: one for all, or one for each channel.
  struct Scale {
    const float* data;
    bool is_one;
    float at(int64_t channel) const { return data[is_one ? 0 : channel]; }
  };

  void read_scales(NodeReader& node) {
    const std::string kinds[] = {node.text("k_quant_type", "NONE"), node.text("v_quant_type", "NONE")};
    const bool channels = kinds[0] == "PER_CHANNEL";
    const int64_t bits = node.number("kv_cache_bit_width", 0);
    if (!cache_.is_int8) {
      if (kinds[0] != "NONE" || kinds[1] != "NONE") throw Wrong("k_quant_type: got a float cache, expected NONE");
      return;
    }
    if (bits != 8 || kinds[0] != kinds[1] || (!channels && kinds[0] != "PER_TENSOR")) {
      throw Wrong("k_quant_type, v_quant_type: expected both PER_TENSOR or PER_CHANNEL, with 8 bits");
    }
    is_one_scale_ = !channels;
    key_scale_ = node.input(12);
    value_scale_ = node.input(13);
  }

  void check_floats(const Tensor& tensor, int64_t width, const char* what) const {
    if (tensor.type != Type::kFloat || tensor.dims.rank != 3 || tensor.last() != width) {
      throw Wrong(std::string(what) + ": got shape " + tensor.dims.text() + ", expected [1, rows, " +
                  std::to_string(width) + "]");
    }
  }

  void check_scale(const Values& values, int value) const {
    if (value < 0) return;
    const int64_t expected = is_one_scale_ ? 1 : cache_.heads * cache_.width;
    if (values[value].type != Type::kFloat || values[value].count() != expected) {
      throw Wrong("scales of the cache: expected " + std::to_string(expected) + " floats");
    }
  }

  // The graph must mean what the decoder does: all tokens so far, this run's at the end.
  void check_lengths(const Values& values, const Work& work) const {
    const Tensor &last = values[last_], &total = values[total_];
    const int64_t expected = work.past + work.rows;
    const auto is = [](const Tensor& t, int64_t n) {
      return t.type == Type::kInteger && t.count() == 1 && *t.integers() == n;
    };
    if (!is(last, expected - 1) || !is(total, expected) || values[query_].rows() != work.rows) {
      throw Wrong("seqlens_k, total_sequence_length: expected " + std::to_string(expected - 1) + " and " +
                  std::to_string(expected) + " for " + std::to_string(work.rows) + " rows");
    }
  }

  Scale scale_of(const Values& values, int value) const {
    return {value < 0 ? nullptr : values[value].floats(), is_one_scale_};
  }

  // One token's keys or values, [heads, width], into [heads, room, width].
  void keep(unsigned char* cache, const float* from, Scale scale, int64_t token) const {
    for (int64_t head = 0; head < cache_.heads; ++head) {
      const int64_t to = (head * room_ + token) * cache_.width, channel = head * cache_.width;
      if (!cache_.is_int8) {
        std::memcpy(cache + size_t(to) * sizeof(float), from + channel, size_t(cache_.width) * sizeof(float));
        continue;
      }
      for (int64_t i = 0; i < cache_.width; ++i) {
        const float rounded = std::nearbyint(from[channel + i] / scale.at(channel + i));
        const float limited = rounded > 127.0f ? 127.0f : rounded;
        reinterpret_cast<int8_t*>(cache)[to + i] = int8_t(limited > -128.0f ? limited : -128.0f);  // so is a NaN
      }
    }
  }

  size_t part_bytes() const { return whole_lines(size_t(room_ + (1 + kAtOnce) * cache_.width) * sizeof(float)); }

  // A row of the cache as floats; `spare` has room for it.
  const float* cached(const unsigned char* cache, int64_t head, int64_t token, float* spare) const {
    const int64_t at = (head * room_ + token) * cache_.width;
    if (!cache_.is_int8) return reinterpret_cast<const float*>(cache) + at;
    const int8_t* from = reinterpret_cast<const int8_t*>(cache) + at;
    for (int64_t i = 0; i < cache_.width; ++i) spare[i] = float(from[i]);
    return spare;
  }

  void attend(Values& values, int64_t past, int64_t row, int64_t head, float* scratch) const {
    const int64_t width = cache_.width, group = head / (heads_ / cache_.heads);
    const int64_t end = past + row + 1, first = window_ > 0 ? std::max<int64_t>(0, end - window_) : 0;
    float *query = scratch, *spare = query + width, *scores = spare + kAtOnce * width;
    const float* from = values[query_].floats() + row * values[query_].last() + head * width;
    const Scale of_keys = scale_of(values, key_scale_), of_values = scale_of(values, value_scale_);
    for (int64_t i = 0; i < width; ++i) {
      query[i] = from[i] * scale_ * (cache_.is_int8 ? of_keys.at(group * width + i) : 1.0f);
    }
    float most = -HUGE_VALF;
    for (int64_t t = first; t < end; ++t) {
      const float score = dot(query, cached(keys_, group, t, spare), width);
      scores[t - first] = cap_ > 0 ? cap_ * hyperbolic_tangent(score / cap_) : score;
    }
    for (int64_t i = 0; i < end - first; ++i) most = std::max(most, scores[i]);
    for (int64_t i = 0; i < end - first; ++i) scores[i] = exponential(scores[i] - most);
    const float share = 1.0f / sum(scores, end - first);
    float* __restrict y = values[y_].floats() + row * values[y_].last() + head * width;
    std::fill(y, y + width, 0.0f);
    int64_t t = first;
    for (; t + kAtOnce <= end; t += kAtOnce) {  // y is read and written once for these
      const float* v[kAtOnce];
      float weight[kAtOnce];
      for (int64_t j = 0; j < kAtOnce; ++j) {
        v[j] = cached(values_, group, t + j, spare + j * width);
        weight[j] = scores[t + j - first] * share;
      }
      for (int64_t i = 0; i < width; ++i) {
        y[i] += (weight[0] * v[0][i] + weight[1] * v[1][i]) + (weight[2] * v[2][i] + weight[3] * v[3][i]);
      }
    }
    for (; t < end; ++t) {
      const float weight = scores[t - first] * share;
      const float* __restrict v = cached(values_, group, t, spare);
      for (int64_t i = 0; i < width; ++i) y[i] += weight * v[i];
    }
    for (int64_t i = 0; cache_.is_int8 && i < width; ++i) y[i] *= of_values.at(group * width + i);
  }

  const int64_t heads_;
  float scale_;
  const float cap_;
  const int64_t window_;
  const int query_, key_, value_;
  const CacheShape cache_;
  const int last_, total_, y_;
  int key_scale_ = -1, value_scale_ = -1;
  bool is_one_scale_ = true;
  unsigned char *keys_ = nullptr, *values_ = nullptr;
  int64_t room_ = 0;
};

}  // namespace

std::unique_ptr<Operator> make_attention(NodeReader& node) {
  const bool is_one = node.node().domain == "com.microsoft" && node.node().op == "GroupQueryAttention";
  return is_one ? std::make_unique<Attention>(node) : nullptr;
}

}  // namespace bcq::native
