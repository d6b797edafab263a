// SPDX-License-Identifier: Apache-2.0
// Blocks for resident weights, and letting go of mapped pages: nothing but unchanged pages of a file may ever be lost.
// Usage: memory FILE, which is made, and a folder FILE.system. Prints each fault and exits with 1 if there is one.
#include "core/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBytes = size_t(16) << 20;

int faults = 0;

void expect(bool fact, const char* what) {
  if (fact) return;
  std::printf("FAULT %s\n", what);
  ++faults;
}

struct Memory {
  size_t mapped;
  size_t resident;
};

Memory memory() {
  Memory pages = {};
  FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr || std::fscanf(file, "%zu %zu", &pages.mapped, &pages.resident) != 2) std::perror("statm");
  if (file != nullptr) std::fclose(file);
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  return {pages.mapped * page, pages.resident * page};
}

size_t resident_bytes() { return memory().resident; }

bool all(const uint8_t* bytes, size_t count, uint8_t value) {
  for (size_t i = 0; i < count; ++i) {
    if (bytes[i] != value) return false;
  }
  return true;
}

// A file of `kBytes` bytes 'f', mapped as ONNX Runtime maps: private and writable.
uint8_t* mapped_file(const char* path) {
  const int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
  const std::vector<uint8_t> content(kBytes, 'f');
  if (file < 0 || write(file, content.data(), kBytes) != ssize_t(kBytes)) return nullptr;
  void* address = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  close(file);
  return address == MAP_FAILED ? nullptr : static_cast<uint8_t*>(address);
}

void anonymous_memory_is_kept() {
  void* address = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  std::memset(address, 'a', kBytes);
  bcq::release_file_pages(address, kBytes);
  expect(all(static_cast<uint8_t*>(address), kBytes, 'a'), "anonymous memory was lost");
  munmap(address, kBytes);
  const std::vector<uint8_t> heap(kBytes, 'h');
  bcq::release_file_pages(heap.data(), heap.size());
  expect(all(heap.data(), heap.size(), 'h'), "memory of the heap was lost");
}

void pages_of_a_file_are_let_go_and_come_back(const char* path) {
  uint8_t* bytes = mapped_file(path);
  expect(all(bytes, kBytes, 'f'), "the file is not what was written");
  const size_t before = resident_bytes();
  bcq::release_file_pages(bytes, kBytes);
  expect(resident_bytes() + kBytes / 2 < before, "pages of a file stayed");
  expect(all(bytes, kBytes, 'f'), "pages of a file came back changed");
  munmap(bytes, kBytes);
}

void written_pages_are_kept(const char* path) {
  uint8_t* bytes = mapped_file(path);
  for (size_t at = 0; at < kBytes; at += 3 * kPage) std::memset(bytes + at, 'w', kPage);
  bcq::release_file_pages(bytes, kBytes);
  bool kept = true;
  for (size_t at = 0; at + kPage <= kBytes; at += kPage) {
    kept = kept && all(bytes + at, kPage, at / kPage % 3 == 0 ? 'w' : 'f');
  }
  expect(kept, "a written page was lost");
  munmap(bytes, kBytes);
}

void neighbours_in_the_same_page_are_kept(const char* path) {
  uint8_t* bytes = mapped_file(path);
  bcq::release_file_pages(bytes + 100, 50);
  bcq::release_file_pages(bytes + kPage - 1, 2);
  bcq::release_file_pages(bytes + 1, kBytes - 2);
  bcq::release_file_pages(bytes, 0);
  expect(all(bytes, kBytes, 'f'), "an odd range changed the file");
  munmap(bytes, kBytes);
}

void blocks_are_apart_aligned_and_given_back() {
  const size_t before = resident_bytes();
  std::vector<std::shared_ptr<void>> blocks;
  const size_t sizes[] = {1, 64, 100, 5000, kBytes, size_t(80) << 20, 3};
  uint8_t value = 0;
  for (const size_t size : sizes) {
    blocks.push_back(bcq::allocate_block(size));
    expect(reinterpret_cast<uintptr_t>(blocks.back().get()) % 64 == 0, "a block is not aligned");
    std::memset(blocks.back().get(), ++value, size);
  }
  blocks[4].reset();
  expect(resident_bytes() < before + (size_t(90) << 20), "the pages of a block stayed while its neighbours live");
  for (size_t i = 0; i < blocks.size(); ++i) {
    const uint8_t* bytes = static_cast<const uint8_t*>(blocks[i].get());
    expect(i == 4 || all(bytes, sizes[i], uint8_t(i + 1)), "a block was overwritten");
  }
  blocks.clear();
  expect(resident_bytes() < before + (size_t(4) << 20), "blocks that nobody holds stayed in memory");
  expect(bcq::allocate_block(SIZE_MAX) == nullptr, "a block beyond all memory was given");
  expect(bcq::allocate_block(size_t(1) << 50) == nullptr, "a block beyond the address space was given");
}

// Who looks blocks up keeps weak pointers to them.
void a_weak_pointer_keeps_no_memory() {
  const Memory before = memory();
  const std::weak_ptr<void> weak = bcq::allocate_block(kBytes);
  expect(weak.expired(), "a block is held by nobody and lives");
  expect(memory().mapped < before.mapped + kBytes, "a weak pointer keeps the mapping");
  for (int i = 0; i < 1000; ++i) {
    const std::shared_ptr<void> block = bcq::allocate_block(5000);
    std::memset(block.get(), i, 5000);
  }
  expect(memory().resident < before.resident + (size_t(1) << 20), "blocks that come and go leave memory behind");
}

void put(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << text;
}

// `root` is an empty folder that stands for the whole system.
void available_memory_is_the_least_of_all_limits(const std::string& root) {
  const size_t unknown = SIZE_MAX;
  expect(bcq::available_bytes(root) == unknown, "a system without figures has one");
  put(root + "/proc/meminfo", "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:   5000 kB\n");
  expect(bcq::available_bytes(root) == 5000 * 1024, "MemAvailable is not read");
  put(root + "/proc/self/cgroup", "0::/a/b\n");
  expect(bcq::available_bytes(root) == 5000 * 1024, "groups without files are a limit");
  put(root + "/sys/fs/cgroup/a/b/memory.max", "max\n");
  put(root + "/sys/fs/cgroup/a/b/memory.current", "7\n");
  expect(bcq::available_bytes(root) == 5000 * 1024, "a group without limit is a limit");
  put(root + "/sys/fs/cgroup/a/memory.max", "3000000\n");
  put(root + "/sys/fs/cgroup/a/memory.current", "1000000\n");
  expect(bcq::available_bytes(root) == 2000000, "the limit of the group around is not seen");
  put(root + "/sys/fs/cgroup/memory.max", "1500000\n");
  expect(bcq::available_bytes(root) == 1500000, "the limit of the outermost group is not seen");
  put(root + "/proc/self/cgroup", "5:cpu:/z\n4:cpuset,memory:/c\nnonsense\n0::/none\n");
  put(root + "/sys/fs/cgroup/memory/c/memory.limit_in_bytes", "900000\n");
  put(root + "/sys/fs/cgroup/memory/c/memory.usage_in_bytes", "100000\n");
  expect(bcq::available_bytes(root) == 800000, "the limit of version 1 is not seen");
  put(root + "/sys/fs/cgroup/memory/c/memory.usage_in_bytes", "900001\n");
  expect(bcq::available_bytes(root) == 0, "a full group leaves something");
  expect(bcq::available_bytes() > 0, "this system has no memory");
}

void copies_take_half_of_what_there_was() {
  expect(bcq::fits(50, 0, 100), "half does not fit");
  expect(!bcq::fits(51, 0, 100), "more than half fits");
  expect(bcq::fits(10, 40, 60), "the rest of the half does not fit");
  expect(!bcq::fits(11, 40, 60), "copies one by one outgrow the half");
  expect(!bcq::fits(1, 60, 0), "something fits into nothing");
  expect(bcq::fits(SIZE_MAX / 2 - 5, 5, SIZE_MAX), "an unknown limit is one");
  expect(!bcq::fits(SIZE_MAX, 5, 100), "a sum overflows");
  const size_t before = bcq::blocks_bytes();
  std::shared_ptr<void> block = bcq::allocate_block(6400);
  expect(bcq::blocks_bytes() == before + 6400, "a block is not counted");
  block.reset();
  expect(bcq::blocks_bytes() == before, "a block that is gone is counted");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return std::fprintf(stderr, "Usage: memory FILE\n"), 2;
  anonymous_memory_is_kept();
  pages_of_a_file_are_let_go_and_come_back(arguments[1]);
  written_pages_are_kept(arguments[1]);
  neighbours_in_the_same_page_are_kept(arguments[1]);
  blocks_are_apart_aligned_and_given_back();
  a_weak_pointer_keeps_no_memory();
  available_memory_is_the_least_of_all_limits(arguments[1] + std::string(".system"));
  copies_take_half_of_what_there_was();
  return faults == 0 ? 0 : 1;
}
