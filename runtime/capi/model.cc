// SPDX-License-Identifier: Apache-2.0
// The reader of bcq.h: maps an exported model and finds its packed matrices. Nodes say what a matrix is, initializers
// where it lies; the validator of the operators checks both.
#include <cstdio>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "capi/bcq.h"
#include "capi/mapped_file.h"
#include "capi/onnx_file.h"
#include "contract.h"
#include "core/shown.h"
#include "core/validate.h"

namespace bcq::capi {
namespace {

constexpr const char* kModelName = "model.onnx";
constexpr size_t kParts = 4;  // codes, alpha_1, alpha_rest, offset: the inputs of a node after the first
constexpr const char* kPartNames[kParts] = {"codes", "alpha_1", "alpha_rest", "offset"};
constexpr const char* kSuffix = ".codes";

struct Named {
  std::string name;
  BcqMatrix matrix;
};

std::string folder_of(const std::string& file) {
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash + 1);
}

}  // namespace

class Model {
 public:
  explicit Model(const std::string& path) : path_(is_folder(path) ? path + "/" + kModelName : path), file_(path_) {
    const OnnxGraph graph = read();
    for (const Node& node : graph.nodes) add(graph, node);
    inside_.clear();  // it names initializers of the graph
  }

  const std::deque<Named>& matrices() const { return matrices_; }

  const BcqMatrix* find(const std::string& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &matrices_[found->second].matrix;
  }

 private:
  // A data file, and the bytes of it that tensors have, from where to where.
  struct Data {
    std::unique_ptr<MappedFile> file;
    std::map<uint64_t, uint64_t> used;
  };

  OnnxGraph read() const {
    try {
      return read_graph(file_.bytes(), contract::kDomain);
    } catch (const FileError& wrong) {
      throw FileError(path_ + ": " + wrong.what());
    }
  }

  // Matrices that several nodes share (an embedding that is also the head) are there once.
  void add(const OnnxGraph& graph, const Node& node) {
    if (node.inputs.size() != kParts + 1) fail(node, "expected 5 inputs");
    const std::string name = without_suffix(node.inputs[1]);
    if (by_name_.count(name) != 0) return;
    matrices_.push_back({name, matrix_of(graph, node)});
    by_name_[name] = matrices_.size() - 1;
  }

  static std::string without_suffix(const std::string& codes) {
    const size_t suffix = std::strlen(kSuffix);
    const bool ends = codes.size() > suffix && codes.compare(codes.size() - suffix, suffix, kSuffix) == 0;
    return ends ? codes.substr(0, codes.size() - suffix) : codes;
  }

  BcqMatrix matrix_of(const OnnxGraph& graph, const Node& node) {
    Attributes attributes = attributes_of(node);
    const Initializer* parts[kParts];
    for (size_t i = 0; i < kParts; ++i) {
      const auto found = graph.initializers.find(node.inputs[i + 1]);
      if (found == graph.initializers.end()) {
        fail(node, std::string(kPartNames[i]) + ": got a computed value, expected a constant");
      }
      parts[i] = &found->second;
    }
    check_shapes(node, attributes, parts);
    attributes.planes = parts[0]->dims[2];
    BcqMatrix matrix = {};
    matrix.N = attributes.N;
    matrix.K = attributes.K;
    matrix.group_size = attributes.group_size;
    matrix.bits = int32_t(attributes.bits);
    matrix.planes = int32_t(attributes.planes);
    matrix.codes = static_cast<const uint32_t*>(data(node, *parts[0], kUint32, sizeof(uint32_t)));
    const auto half = [&](size_t i) {
      return static_cast<const uint16_t*>(data(node, *parts[i], kFloat16, sizeof(uint16_t)));
    };
    matrix.alpha_1 = half(1);
    matrix.alpha_rest = half(2);
    matrix.offset = half(3);
    check_padding_once(node, attributes, matrix);
    return matrix;
  }

  // Many matrices may have the same codes: a small file must not take hours.
  void check_padding_once(const Node& node, const Attributes& attributes, const BcqMatrix& matrix) {
    const bool first = checked_.insert({matrix.codes, matrix.N, matrix.K, matrix.planes}).second;
    if (first) refuse(node, check_padding(attributes, matrix.codes));
  }

  Attributes attributes_of(const Node& node) const {
    Attributes found;
    const auto number = [&](const char* name) {
      const auto value = node.numbers.find(name);
      if (value == node.numbers.end()) fail(node, std::string("attribute ") + name + ": got none, expected one");
      return value->second;
    };
    const auto text = [&](const char* name) {
      const auto value = node.texts.find(name);
      return value == node.texts.end() ? std::string() : value->second;
    };
    found.format_version = number("format_version");
    found.bits = number("bits");
    found.K = number("K");
    found.N = number("N");
    found.group_size = number("group_size");
    found.layout = text("layout");
    found.code_hash = text("code_hash");
    refuse(node, check_attributes(found));
    return found;
  }

  void check_shapes(const Node& node, const Attributes& attributes, const Initializer* const (&parts)[kParts]) const {
    const auto shape = [&](size_t i) { return Shape{parts[i]->dims.data(), parts[i]->dims.size()}; };
    refuse(node, check_codes(attributes, shape(0)));
    refuse(node, check_alpha_1(attributes, shape(1)));
    refuse(node, check_alpha_rest(attributes, shape(2)));
    refuse(node, check_offset(attributes, shape(3)));
  }

  // The bytes of a tensor whose shape has been checked; null for an empty one.
  const void* data(const Node& node, const Initializer& tensor, int64_t type, int64_t element) {
    if (tensor.type != type) {
      fail(node, "element type: got " + std::to_string(tensor.type) + ", expected " + std::to_string(type));
    }
    const int64_t elements = checked_product(tensor.dims.data(), tensor.dims.size(), element);
    if (elements < 0) fail(node, "a tensor is too large");
    const size_t wanted = size_t(elements * element);
    if (wanted == 0) return nullptr;
    const View bytes = tensor.external ? external(node, tensor) : inlined(tensor);
    if (bytes.size != wanted) {
      fail(node, "bytes: got " + std::to_string(bytes.size) + ", expected " + std::to_string(wanted));
    }
    if (reinterpret_cast<uintptr_t>(bytes.data) % uintptr_t(element) != 0) fail(node, "its data is not aligned");
    return bytes.data;
  }

  // Small tensors lie in the graph file, at any byte: an aligned copy is kept, one for all nodes that read it.
  View inlined(const Initializer& tensor) {
    const auto known = inside_.find(&tensor);
    if (known != inside_.end()) return known->second;
    copies_.emplace_back(tensor.raw.data, tensor.raw.data + tensor.raw.size);
    return inside_[&tensor] = {copies_.back().data(), copies_.back().size()};
  }

  View external(const Node& node, const Initializer& tensor) {
    const std::string& place = tensor.location;
    if (tensor.raw.size != 0) fail(node, "its data lies both inside and outside of the file");
    if (place.empty() || place.find('/') != std::string::npos || place.find('\0') != std::string::npos) {
      fail(node, "its data lies in another folder, which is not allowed");
    }
    Data& data = data_[place];
    if (data.file == nullptr) data.file = std::make_unique<MappedFile>(folder_of(path_) + "/" + place);
    const View all = data.file->bytes();
    if (tensor.offset > all.size || tensor.length > all.size - tensor.offset) {
      fail(node, "its data ends behind the end of " + place + ", which may be cut short: copy it again");
    }
    if (!is_own(data.used, tensor.offset, tensor.offset + tensor.length)) {
      fail(node, "its data in " + place + " overlaps that of another tensor");
    }
    return {all.data + tensor.offset, size_t(tensor.length)};
  }

  // Tensors may share their bytes, but not a part of them.
  static bool is_own(std::map<uint64_t, uint64_t>& used, uint64_t first, uint64_t last) {
    const auto next = used.upper_bound(first);
    if (next != used.end() && next->first < last) return false;
    if (next == used.begin()) return used.emplace(first, last).second;
    const auto& [from, to] = *std::prev(next);
    return to <= first ? used.emplace(first, last).second : from == first && to == last;
  }

  void refuse(const Node& node, const std::string& wrong) const {
    if (!wrong.empty()) fail(node, wrong);
  }

  [[noreturn]] void fail(const Node& node, const std::string& why) const {
    throw FileError(path_ + ": node '" + node.name + "': " + why);
  }

  std::string path_;
  MappedFile file_;
  std::map<std::string, Data> data_;
  std::map<const Initializer*, View> inside_;
  std::deque<std::vector<uint8_t>> copies_;
  std::set<std::tuple<const uint32_t*, int64_t, int64_t, int32_t>> checked_;
  std::deque<Named> matrices_;
  std::map<std::string, size_t> by_name_;
};

}  // namespace bcq::capi

struct BcqModel {
  explicit BcqModel(const char* path) : model(path) {}
  bcq::capi::Model model;
};

namespace {

// Names in a message may come from the file.
void tell(const char* text, char* why, size_t why_bytes) {
  if (why == nullptr || why_bytes == 0) return;
  try {
    const std::string line = bcq::shown(text, why_bytes - 1);
    std::memcpy(why, line.c_str(), line.size() + 1);
  } catch (const std::bad_alloc&) {
    std::snprintf(why, why_bytes, "out of memory");
  }
}

}  // namespace

extern "C" {

BcqModel* bcq_model_open(const char* path, char* why, size_t why_bytes) {
  try {
    if (path == nullptr) throw bcq::capi::FileError("path: got NULL");
    return new BcqModel(path);
  } catch (const std::exception& error) {
    tell(error.what(), why, why_bytes);
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
  if (model == nullptr || name == nullptr) return nullptr;
  try {
    return model->model.find(name);
  } catch (const std::bad_alloc&) {
    return nullptr;  // a long name is copied before it is looked up
  }
}

}  // extern "C"
