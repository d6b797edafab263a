// SPDX-License-Identifier: Apache-2.0
#include "capi/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace bcq::capi {
namespace {

[[noreturn]] void fail(const std::string& path) { throw FileError(path + ": " + std::strerror(errno)); }

// Closes a descriptor: a mapping stays without it.
struct Descriptor {
  const int number;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

}  // namespace

bool is_folder(const std::string& path) {
  struct stat found;
  return stat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode);
}

MappedFile::MappedFile(const std::string& path) {
  // O_NONBLOCK: a pipe must not hold the program up before it is refused.
  const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
  struct stat found;
  if (file.number < 0 || fstat(file.number, &found) != 0) fail(path);
  if (!S_ISREG(found.st_mode)) throw FileError(path + ": this is no regular file");
  if (found.st_size == 0) return;
  void* data = mmap(nullptr, size_t(found.st_size), PROT_READ, MAP_SHARED, file.number, 0);
  if (data == MAP_FAILED) fail(path);
  view_ = {static_cast<const uint8_t*>(data), size_t(found.st_size)};
}

MappedFile::~MappedFile() {
  if (view_.data != nullptr) munmap(const_cast<uint8_t*>(view_.data), view_.size);
}

}  // namespace bcq::capi
