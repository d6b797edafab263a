// SPDX-License-Identifier: Apache-2.0
// A decoder that runs: the graph, what it has seen, and all the memory that it will ever take.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "capi/bcq_decoder.h"
#include "native/graph.h"

namespace bcq::native {

class Decoder {
 public:
  // Throws FileError, std::bad_alloc, std::system_error.
  Decoder(const std::string& path, const BcqDecoderOptions& options);

  // The logits after the last of these tokens, until the next call. Throws FileError; nothing has been seen then.
  const float* step(const int64_t* ids, int64_t count);
  void keep(int64_t tokens) { seen_ = std::min(seen_, std::max<int64_t>(tokens, 0)); }

  int64_t seen() const { return seen_; }
  int64_t vocabulary() const { return vocabulary_; }
  BcqDecoderBytes bytes() const;

 private:
  void place_cache();
  void plan();
  // Feeds the tokens behind those that were seen.
  void feed(const int64_t* ids, int64_t rows, int64_t past);
  void run(const Work& work, bool wants_logits);
  void check_logits() const;
  [[noreturn]] void fail(const Step& step, const Wrong& wrong) const;

  const int64_t room_, chunk_;
  capi::TensorFiles files_;
  Values values_;
  Graph graph_;
  Team team_;
  Memory cache_, scratch_;
  std::vector<int64_t> mask_, ids_, positions_;
  int64_t kept_logits_ = 1;
  int64_t vocabulary_ = 0;
  int64_t seen_ = 0;
};

}  // namespace bcq::native
