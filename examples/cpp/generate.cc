// SPDX-License-Identifier: Apache-2.0
// Continues token ids with a decoder that `bcq export` wrote, greedily: generate FOLDER COUNT ID... [--adapter FILE]
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

#include "bcq_ops.h"

using Names = std::vector<std::string>;

static std::vector<const char*> pointers(const Names& names) {
  std::vector<const char*> all;
  for (const std::string& name : names) all.push_back(name.c_str());
  return all;
}

static Ort::Value integers(std::vector<int64_t>& values) {
  const int64_t shape[] = {1, int64_t(values.size())};
  return Ort::Value::CreateTensor(Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault), values.data(),
                                  values.size(), shape, 2);
}

static std::vector<int64_t> generate(Ort::Session& session, std::vector<int64_t> ids, size_t count,
                                     const Ort::RunOptions& run) {
  Ort::AllocatorWithDefaultOptions allocator;
  Names inputs, outputs = {"logits"};
  std::vector<Ort::Value> past;  // keys and values of the tokens so far, [1, heads, tokens, width]: none yet
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    const std::string name = session.GetInputNameAllocated(i, allocator).get();
    const bool is_past = name.rfind("past_key_values.", 0) == 0;
    const bool is_ours = name == "input_ids" || name == "attention_mask" || name == "position_ids";
    if (!is_past && !is_ours) continue;  // it has a default, which an adapter may change
    inputs.push_back(name);
    if (!is_past) continue;
    outputs.push_back("present" + name.substr(name.find('.')));
    const Ort::TypeInfo type = session.GetInputTypeInfo(i);
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    const int64_t shape[] = {1, tensor.GetShape()[1], 0, tensor.GetShape()[3]};
    past.push_back(Ort::Value::CreateTensor(allocator, shape, 4, tensor.GetElementType()));
  }
  std::vector<int64_t> fresh = ids, made;  // fresh: not yet seen by the model
  while (made.size() < count) {
    std::vector<int64_t> mask(ids.size(), 1), positions(fresh.size());
    std::iota(positions.begin(), positions.end(), int64_t(ids.size() - fresh.size()));
    std::vector<Ort::Value> values;
    auto next = past.begin();
    for (const std::string& name : inputs) {
      values.push_back(name == "input_ids"        ? integers(fresh)
                       : name == "attention_mask" ? integers(mask)
                       : name == "position_ids"   ? integers(positions)
                                                  : std::move(*next++));
    }
    std::vector<Ort::Value> results = session.Run(run, pointers(inputs).data(), values.data(), values.size(),
                                                  pointers(outputs).data(), outputs.size());
    const std::vector<int64_t> shape = results[0].GetTensorTypeAndShapeInfo().GetShape();  // [1, tokens, vocabulary]
    const float* last = results[0].GetTensorData<float>() + (shape[1] - 1) * shape[2];
    fresh.assign(1, std::max_element(last, last + shape[2]) - last);
    made.push_back(fresh[0]);
    ids.push_back(fresh[0]);
    past.assign(std::make_move_iterator(results.begin() + 1), std::make_move_iterator(results.end()));
  }
  return made;
}

int main(int count, char** words) try {
  Names arguments(words + 1, words + count);
  std::string adapter_file;
  if (arguments.size() > 4 && arguments[arguments.size() - 2] == "--adapter") {
    adapter_file = arguments.back();
    arguments.resize(arguments.size() - 2);
  }
  if (arguments.size() < 3) throw std::invalid_argument("use: generate FOLDER COUNT ID... [--adapter FILE]");
  std::vector<int64_t> ids;
  for (size_t i = 2; i < arguments.size(); ++i) ids.push_back(std::stoll(arguments[i]));

  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
  Ort::ThrowOnError(RegisterCustomOps(options, OrtGetApiBase()));
  Ort::Session session(env, (arguments[0] + "/model.onnx").c_str(), options);
  Ort::RunOptions run;
  Ort::LoraAdapter adapter{nullptr};
  if (!adapter_file.empty()) {  // another adapter, another task: in the same session, from run to run
    adapter = Ort::LoraAdapter::CreateLoraAdapter(adapter_file, nullptr);
    run.AddActiveLoraAdapter(adapter);
  }
  for (const int64_t id : generate(session, ids, std::stoull(arguments[1]), run)) std::printf("%lld ", (long long)id);
  std::puts("");
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return EXIT_FAILURE;
}
