// SPDX-License-Identifier: Apache-2.0
// Continues token ids with a decoder that `bcq export` wrote, greedily: generate FOLDER COUNT ID... [--adapter FILE]
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>

#include "decoder.h"
#include "small.h"

#include "bcq_ops.h"

struct Request {
  std::string folder, adapter;
  size_t count;
  std::vector<int64_t> ids;
};

static Request read_words(std::vector<std::string> words) {
  Request asked;
  if (words.size() > 4 && words[words.size() - 2] == "--adapter") {
    asked.adapter = words.back();
    words.resize(words.size() - 2);
  }
  if (words.size() < 3) throw std::invalid_argument("use: generate FOLDER COUNT ID... [--adapter FILE]");
  asked.folder = words[0];
  asked.count = std::stoull(words[1]);
  for (size_t i = 2; i < words.size(); ++i) asked.ids.push_back(std::stoll(words[i]));
  return asked;
}

int main(int count, char** words) try {
  const Request asked = read_words({words + 1, words + count});
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
  Ort::ThrowOnError(RegisterCustomOps(options, OrtGetApiBase()));
  Ort::Session session(env, (asked.folder + "/model.onnx").c_str(), options);
  release_what_loading_used();

  Ort::RunOptions run;
  Ort::LoraAdapter adapter{nullptr};
  if (!asked.adapter.empty()) {  // another adapter, another task: in the same session, from run to run
    adapter = Ort::LoraAdapter::CreateLoraAdapter(asked.adapter, nullptr);
    run.AddActiveLoraAdapter(adapter);
  }
  Decoder decoder(session, asked.folder, int64_t(asked.ids.size() + asked.count));
  std::vector<int64_t> fresh = asked.ids;
  for (size_t made = 0; made < asked.count; ++made) {
    fresh = {decoder.next(fresh, run)};
    std::printf("%lld ", static_cast<long long>(fresh[0]));
  }
  std::puts("");
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return EXIT_FAILURE;
}
