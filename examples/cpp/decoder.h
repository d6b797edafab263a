// SPDX-License-Identifier: Apache-2.0
// A decoder that `bcq export` wrote, in a session of onnxruntime. Keys and values stay with it from step to step.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

class Decoder {
 public:
  // room: tokens that it will see at most.
  Decoder(Ort::Session& session, const std::string& folder, int64_t room) : session_(session) {
    shares_buffer_ = file_says(folder + "/genai_config.json", "\"past_present_share_buffer\": true");
    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<std::string> pasts;
    for (size_t i = 0; i < session.GetInputCount(); ++i) {
      const std::string name = session.GetInputNameAllocated(i, allocator).get();
      if (name == "input_ids" || name == "attention_mask" || name == "position_ids") inputs_.push_back(name);
      if (name.rfind("past_key_values.", 0) != 0) continue;  // what else there is has a default
      const Ort::TypeInfo type = session.GetInputTypeInfo(i);
      const auto tensor = type.GetTensorTypeAndShapeInfo();
      const int64_t shape[] = {1, tensor.GetShape()[1], shares_buffer_ ? room : 0, tensor.GetShape()[3]};
      past_.push_back(Ort::Value::CreateTensor(allocator, shape, 4, tensor.GetElementType()));
      pasts.push_back(name);
      outputs_.push_back("present" + name.substr(name.find('.')));
    }
    inputs_.insert(inputs_.end(), pasts.begin(), pasts.end());
  }

  // The most likely token behind those that it has seen and these.
  int64_t next(std::vector<int64_t> fresh, const Ort::RunOptions& run) {
    std::vector<int64_t> positions(fresh.size()), mask(seen_ + fresh.size(), 1);
    std::iota(positions.begin(), positions.end(), int64_t(seen_));
    seen_ += fresh.size();
    std::vector<Ort::Value> values, results;
    for (size_t i = 0; i < inputs_.size() - past_.size(); ++i) {
      values.push_back(row(inputs_[i] == "input_ids" ? fresh : inputs_[i] == "position_ids" ? positions : mask));
    }
    results.emplace_back(nullptr);  // onnxruntime makes what is null
    for (Ort::Value& past : past_) {
      values.push_back(same_memory(past));
      results.push_back(shares_buffer_ ? same_memory(past) : Ort::Value(nullptr));
    }
    session_.Run(run, pointers(inputs_).data(), values.data(), values.size(), pointers(outputs_).data(), results.data(),
                 results.size());
    if (!shares_buffer_) std::move(results.begin() + 1, results.end(), past_.begin());
    const std::vector<int64_t> shape = results[0].GetTensorTypeAndShapeInfo().GetShape();  // [1, tokens, vocabulary]
    const float* last = results[0].GetTensorData<float>() + (shape[1] - 1) * shape[2];
    return std::max_element(last, last + shape[2]) - last;
  }

 private:
  static bool file_says(const std::string& path, const std::string& what) {
    std::ifstream file(path);
    return std::string(std::istreambuf_iterator<char>(file), {}).find(what) != std::string::npos;
  }

  static std::vector<const char*> pointers(const std::vector<std::string>& names) {
    std::vector<const char*> all;
    for (const std::string& name : names) all.push_back(name.c_str());
    return all;
  }

  Ort::Value row(std::vector<int64_t>& values) const {
    const int64_t shape[] = {1, int64_t(values.size())};
    return Ort::Value::CreateTensor(memory_, values.data(), values.size(), shape, 2);
  }

  Ort::Value same_memory(Ort::Value& value) const {
    const auto tensor = value.GetTensorTypeAndShapeInfo();
    const std::vector<int64_t> shape = tensor.GetShape();
    const ONNXTensorElementDataType type = tensor.GetElementType();
    const size_t width = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : 1;
    return Ort::Value::CreateTensor(memory_, value.GetTensorMutableRawData(), tensor.GetElementCount() * width,
                                    shape.data(), shape.size(), type);
  }

  Ort::Session& session_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::string> inputs_, outputs_ = {"logits"};  // keys and values behind the others, in the same order
  std::vector<Ort::Value> past_;                            // keys and values, [1, heads, tokens or room, width]
  bool shares_buffer_;                                      // past and present are one, which a run writes to
  size_t seen_ = 0;
};
