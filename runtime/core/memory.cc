// SPDX-License-Identifier: Apache-2.0
#include "core/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>

namespace bcq {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kAlignment = 64;
// Address space of one mapping; memory is taken as blocks are written, so at most one huge page of it is waste.
constexpr size_t kMappingBytes = size_t(64) << 20;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// An anonymous mapping that starts at a multiple of a huge page, cut into blocks from its beginning.
class Mapping {
 public:
  explicit Mapping(size_t bytes) : bytes_(bytes + kHugePage) {
    base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    used_ = round_up(reinterpret_cast<uintptr_t>(base_), kHugePage) - reinterpret_cast<uintptr_t>(base_);
#if defined(MADV_HUGEPAGE)
    madvise(static_cast<char*>(base_) + used_, bytes, MADV_HUGEPAGE);  // a wish: without it small pages do
#endif
  }
  ~Mapping() { munmap(base_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  void* take(size_t bytes) {
    if (bytes > bytes_ - used_) return nullptr;
    void* block = static_cast<char*>(base_) + used_;
    used_ += bytes;
    return block;
  }

 private:
  void* base_;
  size_t bytes_;
  size_t used_;
};

// A part of a mapping. A member, and no deleter, holds the mapping: a deleter would live on with the last weak pointer.
struct Block {
  std::shared_ptr<Mapping> mapping;
  void* data;
  size_t bytes;

  // Gives back the whole pages of the block; other blocks may keep the mapping.
  ~Block() {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(data), page);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
};

std::shared_ptr<void> take_block(size_t bytes) {
  static std::mutex& mutex = *new std::mutex;
  static std::weak_ptr<Mapping>& newest = *new std::weak_ptr<Mapping>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Mapping> mapping = newest.lock();
  void* data = mapping == nullptr ? nullptr : mapping->take(bytes);
  if (data == nullptr) {
    mapping = std::make_shared<Mapping>(std::max(kMappingBytes, round_up(bytes, kHugePage)));
    newest = mapping;
    data = mapping->take(bytes);
  }
  const std::shared_ptr<Block> block(new Block{mapping, data, bytes});
  return {block, data};
}

#if defined(__linux__)
// Linux's own table of pages, 8 bytes each: bit 63 says that a page is present, bit 61 that it belongs to a file.
class PageTable {
 public:
  static constexpr size_t kMost = 512;

  PageTable() : file_(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) {}
  ~PageTable() {
    if (file_ >= 0) close(file_);
  }
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  // Reads the entries of `count` <= kMost pages; false when the system does not give them.
  bool read(uintptr_t first_page, size_t count) {
    const ssize_t wanted = ssize_t(count * sizeof(uint64_t));
    return file_ >= 0 && pread(file_, entries_, size_t(wanted), off_t(first_page * sizeof(uint64_t))) == wanted;
  }
  bool is_file(size_t i) const { return (entries_[i] >> 63 & 1) != 0 && (entries_[i] >> 61 & 1) != 0; }

 private:
  int file_;
  uint64_t entries_[kMost];
};

// Lets go of each run of file pages among `count` pages whose entries have been read.
void release_runs(const PageTable& table, uintptr_t first_page, size_t count, size_t page_bytes) {
  for (size_t i = 0; i < count;) {
    const size_t begin = i;
    while (i < count && table.is_file(i)) ++i;
    void* run = reinterpret_cast<void*>((first_page + begin) * page_bytes);
    if (i > begin) madvise(run, (i - begin) * page_bytes, MADV_DONTNEED);
    else ++i;
  }
}
#endif

}  // namespace

std::shared_ptr<void> allocate_block(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  try {
    return take_block(round_up(std::max(bytes, size_t(1)), kAlignment));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

#if defined(__linux__)
void release_file_pages(const void* begin, size_t bytes) {
  const size_t page_bytes = size_t(sysconf(_SC_PAGESIZE));
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t end = (address + bytes) / page_bytes;
  PageTable table;
  for (uintptr_t page = round_up(address, page_bytes) / page_bytes; page < end; page += PageTable::kMost) {
    const size_t count = std::min<size_t>(PageTable::kMost, end - page);
    if (!table.read(page, count)) return;
    release_runs(table, page, count, page_bytes);
  }
}
#else
void release_file_pages(const void*, size_t) {}
#endif

}  // namespace bcq
