// SPDX-License-Identifier: Apache-2.0
#include "native/decoder.h"

#include <algorithm>
#include <numeric>

namespace bcq::native {
namespace {

constexpr int64_t kUsualChunk = 64;  // rows that a product takes at once; more would only make the arena larger
constexpr size_t kMostCache = size_t(1) << 46;

int64_t checked(int64_t value, int64_t most, const char* name) {
  if (value >= 1 && value <= most) return value;
  throw Wrong(std::string(name) + ": got " + std::to_string(value) + ", expected 1 to " + std::to_string(most));
}

}  // namespace

Decoder::Decoder(const std::string& path, const BcqDecoderOptions& options)
    : room_(checked(options.room, 1 << 24, "room")),
      chunk_(std::min(room_, checked(options.chunk == 0 ? kUsualChunk : options.chunk, 4096, "chunk"))), files_(path),
      graph_(Binder(files_, values_).bind()),
      team_(size_t(checked(options.threads == 0 ? 1 : options.threads, 256, "threads")), options.parallel_for,
            options.pool),
      mask_(size_t(room_), 1), ids_(size_t(chunk_)), positions_(size_t(chunk_)) {
  if (options.parallel_for != nullptr && options.threads < 2) {
    throw Wrong("threads: got " + std::to_string(options.threads) + " with parallel_for, expected how many it has: 2 or more");
  }
  place_cache();
  plan();
}

void Decoder::place_cache() {
  size_t bytes = 0;
  for (const Step& step : graph_.steps) {
    const CacheShape* shape = step.op->cache();
    if (shape != nullptr) bytes += 2 * whole_lines(shape->bytes(room_));
    if (bytes > kMostCache) throw Wrong("room: the cache would take more than 2^46 bytes");
  }
  cache_ = Memory(bytes);
  unsigned char* at = cache_.data();
  for (Step& step : graph_.steps) {
    if (step.op->cache() == nullptr) continue;
    const size_t each = whole_lines(step.op->cache()->bytes(room_));
    step.op->keep_in(at, at + each, room_);
    at += 2 * each;
  }
}

// The largest run, without its floats: what it takes is what all runs take at most.
void Decoder::plan() {
  feed(ids_.data(), chunk_, room_ - chunk_);
  const Work work = {team_, nullptr, room_ - chunk_, chunk_};
  size_t scratch = 0;
  values_.begin_plan();
  for (size_t i = 0; i < graph_.steps.size(); ++i) {
    const Step& step = graph_.steps[i];
    values_.now(int(i));
    try {
      step.op->shape(values_);
      const auto is_integer = [&](int value) { return values_[value].type == Type::kInteger; };
      if (std::all_of(step.outputs.begin(), step.outputs.end(), is_integer)) step.op->run(values_, work);
      scratch = std::max(scratch, step.op->scratch_bytes(values_, team_.size()));
    } catch (const Wrong& wrong) {
      fail(step, Wrong(wrong.what() + (", in a run of " + std::to_string(chunk_)) + " tokens for a room of " +
                       std::to_string(room_)));
    }
  }
  vocabulary_ = values_[graph_.logits].last();
  check_logits();
  values_.finish_plan(graph_.last_reads);
  scratch_ = Memory(scratch);
}

const float* Decoder::step(const int64_t* ids, int64_t count) {
  if (count < 1) throw Wrong("count: got " + std::to_string(count) + ", expected at least 1");
  if (count > room_ - seen_) {
    throw Wrong("got " + std::to_string(count) + " tokens after " + std::to_string(seen_) + ", but the decoder has room for " +
                std::to_string(room_) + ": open it with more room, or forget some (bcq_decoder_keep)");
  }
  int64_t past = seen_;
  for (int64_t begin = 0; begin < count; begin += chunk_) {
    const int64_t rows = std::min(chunk_, count - begin);
    feed(ids + begin, rows, past);
    run({team_, scratch_.data(), past, rows}, begin + rows == count);
    past += rows;
  }
  check_logits();
  seen_ = past;
  const Tensor& logits = values_[graph_.logits];
  return logits.floats() + (logits.rows() - 1) * vocabulary_;
}

// Their shape may depend on the tokens.
void Decoder::check_logits() const {
  const Tensor& logits = values_[graph_.logits];
  if (logits.type != Type::kFloat || logits.dims.rank != 3 || logits.rows() < 1 || logits.last() != vocabulary_) {
    throw FileError(files_.path() + ": output 'logits': got shape " + logits.dims.text() + ", expected floats [1, rows, " +
                    std::to_string(vocabulary_) + "]");
  }
}

void Decoder::feed(const int64_t* ids, int64_t rows, int64_t past) {
  std::copy(ids, ids + rows, ids_.begin());
  std::iota(positions_.begin(), positions_.begin() + rows, past);
  const auto give = [&](int value, int64_t* data, int rank, int64_t size) {
    if (value < 0) return;
    Tensor& tensor = values_.fed(value);
    tensor.type = Type::kInteger;
    tensor.dims = Dims();
    if (rank == 2) tensor.dims.push(1);
    tensor.dims.push(size);
    tensor.data = data;
  };
  give(graph_.input_ids, ids_.data(), 2, rows);
  give(graph_.position_ids, positions_.data(), 2, rows);
  give(graph_.attention_mask, mask_.data(), 2, past + rows);
  give(graph_.logits_to_keep, &kept_logits_, 1, 1);
}

void Decoder::run(const Work& work, bool wants_logits) {
  for (const Step& step : graph_.steps) {
    if (!wants_logits && !step.for_cache) continue;
    try {
      step.op->shape(values_);
      step.op->run(values_, work);
    } catch (const Wrong& wrong) {
      fail(step, wrong);
    }
  }
}

void Decoder::fail(const Step& step, const Wrong& wrong) const {
  throw FileError(files_.path() + ": " + step.label + ": " + wrong.what());
}

BcqDecoderBytes Decoder::bytes() const {
  return {sizeof(BcqDecoderBytes), values_.arena_bytes(), cache_.bytes(), scratch_.bytes(), files_.mapped()};
}

}  // namespace bcq::native
