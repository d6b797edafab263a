// SPDX-License-Identifier: Apache-2.0
// A regular file in memory, read only, for as long as the object lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace bcq::capi {

struct View {
  const uint8_t* data;
  size_t size;
};

class FileError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

bool is_folder(const std::string& path);

class MappedFile {
 public:
  // Throws FileError when there is no such regular file. A link is not followed: data of strangers stays in its folder.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  View bytes() const { return view_; }

 private:
  View view_ = {nullptr, 0};
};

}  // namespace bcq::capi
