// SPDX-License-Identifier: Apache-2.0
// The reader of bcq.h: maps an exported model and finds its packed matrices.
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "capi/bcq.h"
#include "capi/packed.h"
#include "capi/tensor_files.h"
#include "capi/told.h"
#include "contract.h"

namespace bcq::capi {
namespace {

struct Named {
  std::string name;
  BcqMatrix matrix;
};

}  // namespace

class Model {
 public:
  explicit Model(const std::string& path) : files_(path) {
    const OnnxGraph graph = files_.graph(contract::kDomain);
    PackedReader reader(graph, files_);
    for (const Node& node : graph.nodes) add(reader, node);
  }

  const std::deque<Named>& matrices() const { return matrices_; }

  const BcqMatrix* find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &matrices_[found->second].matrix;
  }

 private:
  // Matrices that several nodes share (an embedding that is also the head) are there once.
  void add(PackedReader& reader, const Node& node) try {
    const std::string name = PackedReader::name(node);
    if (by_name_.count(name) != 0) return;
    matrices_.push_back({name, reader.read(node)});
    by_name_[name] = matrices_.size() - 1;
  } catch (const Wrong& wrong) {
    throw FileError(files_.path() + ": node '" + node.name + "': " + wrong.what());
  }

  TensorFiles files_;
  std::deque<Named> matrices_;
  std::map<std::string, size_t, std::less<>> by_name_;
};

}  // namespace bcq::capi

struct BcqModel {
  explicit BcqModel(const char* path) : model(path) {}
  bcq::capi::Model model;
};

extern "C" {

BcqModel* bcq_model_open(const char* path, char* why, size_t why_bytes) {
  try {
    if (path == nullptr) throw bcq::capi::FileError("path: got NULL");
    return new BcqModel(path);
  } catch (const std::exception& error) {
    bcq::capi::tell(error.what(), why, why_bytes);
  }
  return nullptr;
}

void bcq_model_close(BcqModel* model) { delete model; }

size_t bcq_model_count(const BcqModel* model) { return model == nullptr ? 0 : model->model.matrices().size(); }

const char* bcq_model_name(const BcqModel* model, size_t index) {
  return index < bcq_model_count(model) ? model->model.matrices()[index].name.c_str() : nullptr;
}

const BcqMatrix* bcq_model_matrix(const BcqModel* model, size_t index) {
  return index < bcq_model_count(model) ? &model->model.matrices()[index].matrix : nullptr;
}

const BcqMatrix* bcq_model_find(const BcqModel* model, const char* name) {
  return model == nullptr || name == nullptr ? nullptr : model->model.find(name);
}

}  // extern "C"
