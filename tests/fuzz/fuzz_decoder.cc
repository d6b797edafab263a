// SPDX-License-Identifier: Apache-2.0
// Fuzzes the decoder that runs without onnxruntime (bcq_decoder.h): any bytes for the .onnx file. It is refused with one
// clean line, or opens, and then runs tokens or says in one clean line why it does not, and again after forgetting them.
// The input is written into the folder that BCQ_FUZZ_EXPORT names.
#include <fstream>
#include <string>
#include <vector>

#include "bytes.h"
#include "capi/bcq_decoder.h"
#include "core/shown.h"
#include "onnx_mutator.h"

namespace {

constexpr size_t kWhyBytes = 512;
constexpr int64_t kRoom = 12;
constexpr size_t kMostArena = size_t(16) << 20;  // a run of more would only be slow
std::string path;  // NOLINT: set once, by LLVMFuzzerInitialize
volatile float sink;

void check_line(const char* line) {
  const std::string text(line);
  if (text.empty()) fuzz::found("a refusal without a reason");
  if (bcq::shown(text, text.size()) != text) fuzz::found("a message that is no clean text: " + text);
}

void check_steps(BcqDecoder* decoder) {
  BcqDecoderBytes bytes = {};
  bytes.struct_bytes = sizeof bytes;
  bcq_decoder_bytes(decoder, &bytes);
  if (bytes.arena > kMostArena || bytes.cache > kMostArena || bytes.scratch > kMostArena) return;
  const int64_t vocabulary = bcq_decoder_vocabulary(decoder);  // as a caller does: once
  const int64_t ids[kRoom + 1] = {1, 2, 3};
  for (const int64_t count : {int64_t(5), int64_t(1), kRoom + 1}) {
    const float* logits = nullptr;
    const int64_t before = bcq_decoder_seen(decoder);
    const char* wrong = bcq_decoder_step(decoder, ids, count, &logits);
    if (wrong != nullptr) check_line(wrong);
    else for (int64_t i = 0; i < vocabulary; ++i) sink = logits[i];
    if (bcq_decoder_seen(decoder) != before + (wrong == nullptr ? count : 0)) fuzz::found("tokens that are not counted");
  }
}

bool open_and_check() {
  std::vector<char> why(kWhyBytes, 'x');
  BcqDecoderOptions options = {};
  options.struct_bytes = sizeof options;
  options.room = kRoom;
  options.chunk = 4;
  BcqDecoder* decoder = bcq_decoder_open(path.c_str(), &options, why.data(), why.size());
  if (decoder == nullptr) {
    check_line(why.data());
    return false;
  }
  check_steps(decoder);
  bcq_decoder_keep(decoder, 0);
  check_steps(decoder);
  bcq_decoder_close(decoder);
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* named = std::getenv("BCQ_FUZZ_EXPORT");
  const std::string folder = named == nullptr ? "." : named;
  path = folder + "/model.onnx";
  if (!open_and_check()) fuzz::found("BCQ_FUZZ_EXPORT: the healthy decoder is refused");
  path = folder + "/fuzzed.onnx";
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  const std::string after = fuzz::OnnxMutator(seed).changed({reinterpret_cast<const char*>(data), size});
  if (after.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, after.data(), after.size());
  return after.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), std::streamsize(size));
  open_and_check();
  return 0;
}
