// SPDX-License-Identifier: Apache-2.0
// Where the bytes of a model's tensors lie: in files beside the graph, which are mapped, or in aligned copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "capi/mapped_file.h"
#include "capi/onnx_file.h"

namespace bcq::capi {

// What is wrong with a node or a tensor; whoever knows its name and file puts them in front.
class Wrong : public FileError {
  using FileError::FileError;
};

class TensorFiles {
 public:
  // `path`: an `.onnx` file, or a folder with model.onnx. Throws FileError when there is none.
  explicit TensorFiles(const std::string& path);

  const std::string& path() const { return path_; }

  // See onnx_file.h; errors have the path in front.
  OnnxGraph graph(const std::string& domain) const;

  // The bytes of a tensor, all that its shape asks for; null for an empty one. They stay as long as this object.
  // Throws Wrong with its name in front, or FileError for a data file that cannot be mapped.
  const void* data(const std::string& name, const Initializer& tensor, int64_t type, size_t element);

  // Bytes of all files that are mapped.
  size_t mapped() const;

 private:
  // A data file, and the bytes of it that tensors have, from where to where.
  struct Data {
    std::unique_ptr<MappedFile> file;
    std::map<uint64_t, uint64_t> used;
  };

  const void* checked_data(const Initializer& tensor, int64_t type, size_t element);
  View inlined(const Initializer& tensor);
  View external(const Initializer& tensor, uint64_t length);

  std::string path_;
  MappedFile file_;
  std::map<std::string, Data> data_;
  std::map<const uint8_t*, View> inside_;
  std::deque<std::vector<uint8_t>> copies_;
};

}  // namespace bcq::capi
