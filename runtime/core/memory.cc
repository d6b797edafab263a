// SPDX-License-Identifier: Apache-2.0
#include "core/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "core/bcq_core.h"

namespace bcq {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kAlignment = 64;
// Address space of one mapping; memory is taken as blocks are written, so at most one huge page of it is waste.
constexpr size_t kMappingBytes = size_t(64) << 20;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

std::atomic<size_t> held_bytes{0};  // of all blocks

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
  const std::shared_ptr<Mapping> mapping;
  void* const data;
  const size_t bytes;

  Block(std::shared_ptr<Mapping> from, void* at, size_t size) : mapping(std::move(from)), data(at), bytes(size) {
    held_bytes += bytes;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  // Gives back the whole pages of the block; other blocks may keep the mapping.
  ~Block() {
    held_bytes -= bytes;
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
  const std::shared_ptr<Block> block(new Block(mapping, data, bytes));
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

// The number that a file begins with; `otherwise` when there is no such file or no number, as in "max".
uint64_t number_in(const std::string& path, uint64_t otherwise) {
  uint64_t number = 0;
  std::ifstream file(path);
  return file >> number ? number : otherwise;
}

// A system that has the file but not this line is older than the line: nothing is known.
uint64_t available_in_meminfo(const std::string& path) {
  std::ifstream file(path);
  const std::string name = "MemAvailable:";
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, name.size(), name) == 0) return std::strtoull(line.c_str() + name.size(), nullptr, 10) * 1024;
  }
  return UINT64_MAX;
}

// What the group at `path` and those around it leave. A container may see its own group as the outermost one, under a
// path that is not there: then only the last step finds files.
uint64_t left_in_groups(const std::string& mount, std::string path, const char* limit, const char* usage) {
  uint64_t left = UINT64_MAX;
  for (;;) {
    if (path == "/") path.clear();
    const uint64_t most = number_in(mount + path + limit, UINT64_MAX);
    const uint64_t used = number_in(mount + path + usage, 0);
    if (most != UINT64_MAX) left = std::min(left, most - std::min(most, used));
    if (path.empty()) return left;
    path.resize(std::min(path.size() - 1, path.rfind('/')));
  }
}

// Lines of /proc/self/cgroup are ID:CONTROLLERS:PATH; version 2 has ID 0 and no controllers.
uint64_t available_in_groups(const std::string& root) {
  uint64_t left = UINT64_MAX;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    const std::string mount = root + "/sys/fs/cgroup";
    if (controllers == ",,") left = std::min(left, left_in_groups(mount, path, "/memory.max", "/memory.current"));
    if (controllers.find(",memory,") == std::string::npos) continue;
    left = std::min(left, left_in_groups(mount + "/memory", path, "/memory.limit_in_bytes", "/memory.usage_in_bytes"));
  }
  return left;
}

}  // namespace

size_t blocks_bytes() { return held_bytes; }

size_t available_bytes(const std::string& root) {
  const uint64_t least = std::min(available_in_meminfo(root + "/proc/meminfo"), available_in_groups(root));
  return size_t(std::min<uint64_t>(least, SIZE_MAX));
}

bool fits(size_t bytes, size_t held, size_t available) {
  const size_t before = available > SIZE_MAX - held ? SIZE_MAX : available + held;
  return held <= before / 2 && bytes <= before / 2 - held;
}

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

uint64_t bcq_memory_for_copies(void) {
  const size_t available = bcq::available_bytes();
  return available == SIZE_MAX ? UINT64_MAX : (uint64_t(available) + bcq::blocks_bytes()) / 2;
}
