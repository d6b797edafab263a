// SPDX-License-Identifier: Apache-2.0
#include "capi/tensor_files.h"

#include <iterator>

#include "core/validate.h"

namespace bcq::capi {
namespace {

constexpr const char* kModelName = "model.onnx";

std::string folder_of(const std::string& file) {
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash + 1);
}

// Tensors may share their bytes, but not a part of them.
bool is_own(std::map<uint64_t, uint64_t>& used, uint64_t first, uint64_t last) {
  const auto next = used.upper_bound(first);
  if (next != used.end() && next->first < last) return false;
  if (next == used.begin()) return used.emplace(first, last).second;
  const auto& [from, to] = *std::prev(next);
  return to <= first ? used.emplace(first, last).second : from == first && to == last;
}

}  // namespace

TensorFiles::TensorFiles(const std::string& path)
    : path_(is_folder(path) ? path + "/" + kModelName : path), file_(path_) {}

OnnxGraph TensorFiles::graph(const std::string& domain) const {
  try {
    return read_graph(file_.bytes(), domain);
  } catch (const FileError& wrong) {
    throw FileError(path_ + ": " + wrong.what());
  }
}

const void* TensorFiles::data(const std::string& name, const Initializer& tensor, int64_t type, size_t element) {
  try {
    return checked_data(tensor, type, element);
  } catch (const Wrong& wrong) {
    throw Wrong("'" + name + "': " + wrong.what());
  }
}

const void* TensorFiles::checked_data(const Initializer& tensor, int64_t type, size_t element) {
  if (tensor.type != type) {
    throw Wrong("element type: got " + std::to_string(tensor.type) + ", expected " + std::to_string(type));
  }
  const int64_t elements = checked_product(tensor.dims.data(), tensor.dims.size(), int64_t(element));
  if (elements < 0) throw Wrong("a tensor is too large");
  const size_t wanted = size_t(elements) * element;
  if (wanted == 0) return nullptr;
  if (!tensor.external && tensor.raw.size == 0) throw Wrong("its data is not in raw_data, as exports have it");
  const View bytes = tensor.external ? external(tensor, tensor.has_length ? tensor.length : wanted) : inlined(tensor);
  if (bytes.size != wanted) {
    throw Wrong("bytes: got " + std::to_string(bytes.size) + ", expected " + std::to_string(wanted));
  }
  if (reinterpret_cast<uintptr_t>(bytes.data) % element != 0) throw Wrong("its data is not aligned");
  return bytes.data;
}

size_t TensorFiles::mapped() const {
  size_t bytes = file_.bytes().size;
  for (const auto& [place, data] : data_) bytes += data.file == nullptr ? 0 : data.file->bytes().size;
  return bytes;
}

// Small tensors lie in the graph file, at any byte: an aligned copy is kept, one for all that read it.
View TensorFiles::inlined(const Initializer& tensor) {
  const auto known = inside_.find(tensor.raw.data);
  if (known != inside_.end() && known->second.size == tensor.raw.size) return known->second;
  copies_.emplace_back(tensor.raw.data, tensor.raw.data + tensor.raw.size);
  return inside_[tensor.raw.data] = {copies_.back().data(), copies_.back().size()};
}

View TensorFiles::external(const Initializer& tensor, uint64_t length) {
  const std::string& place = tensor.location;
  if (tensor.raw.size != 0) throw Wrong("its data lies both inside and outside of the file");
  if (place.empty() || place.find('/') != std::string::npos || place.find('\0') != std::string::npos) {
    throw Wrong("its data lies in another folder, which is not allowed");
  }
  Data& data = data_[place];
  if (data.file == nullptr) data.file = std::make_unique<MappedFile>(folder_of(path_) + "/" + place);
  const View all = data.file->bytes();
  if (tensor.offset > all.size || length > all.size - tensor.offset) {
    throw Wrong("its data ends behind the end of " + place + ", which may be cut short: copy it again");
  }
  if (!is_own(data.used, tensor.offset, tensor.offset + length)) {
    throw Wrong("its data in " + place + " overlaps that of another tensor");
  }
  return {all.data + tensor.offset, size_t(length)};
}

}  // namespace bcq::capi
