// SPDX-License-Identifier: Apache-2.0
#include "ort/profile.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>

#include "ort/node.h"

namespace bcq::ort {
namespace {

constexpr const char* kEnding = ".jsonl";
constexpr char kBeginning[] = "{\"node\": ";  // of each line

bool ends_well(const std::string& path) {
  const size_t length = std::strlen(kEnding);
  return path.size() > length && path.compare(path.size() - length, length, kEnding) == 0;
}

// Why a file that is open is no profile, or null.
const char* fault_of(int file) {
  struct stat facts;
  if (fstat(file, &facts) != 0) return std::strerror(errno);
  if (!S_ISREG(facts.st_mode)) return "this is none";
  if (facts.st_nlink != 1) return "this one has other names: a hard link";
  if (facts.st_size == 0) return nullptr;
  char begin[sizeof kBeginning];
  const ssize_t length = ssize_t(sizeof kBeginning - 1);
  const bool ours = pread(file, begin, size_t(length), 0) == length && std::memcmp(begin, kBeginning, size_t(length)) == 0;
  return ours ? nullptr : "this one holds something else than a profile";
}

// A descriptor to append with, or -1 and the fault.
int open_to_append(const std::string& path, std::string& fault) {
  const int file = open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
  const char* found = file < 0 ? std::strerror(errno) : fault_of(file);
  if (found == nullptr) return file;
  fault = found;
  if (file >= 0) close(file);
  return -1;
}

// Takes the `count` bytes that were appended last out again or, where another process has appended more, ends their line.
void undo(int file, ssize_t count) {
  const off_t end = lseek(file, 0, SEEK_CUR);
  struct stat facts;
  const bool last = end >= count && fstat(file, &facts) == 0 && facts.st_size == end;
  if (last && ftruncate(file, end - count) == 0) return;
  if (write(file, "\n", 1) != 1) return;  // nothing more can be done
}

// Appends a line whole or says why not.
bool append(int file, const std::string& line, std::string& fault) {
  const ssize_t count = write(file, line.data(), line.size());
  if (count == ssize_t(line.size())) return true;
  if (count >= 0) errno = ENOSPC;  // a short write sets none
  fault = std::strerror(errno);
  if (count > 0) undo(file, count);
  return false;
}

// Empty when there is no current folder.
std::string absolute(const std::string& path) {
  if (path[0] == '/') return path;
  char folder[PATH_MAX];
  return getcwd(folder, sizeof folder) == nullptr ? std::string() : std::string(folder) + "/" + path;
}

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : printable(text)) json += (c == '"' || c == '\\') ? std::string("\\") + c : std::string(1, c);
  return json + "\"";
}

std::string member(const char* name, const std::string& value) { return std::string("\"") + name + "\": " + value; }

std::string member(const char* name, int64_t value) { return member(name, std::to_string(value)); }

std::string microseconds(std::chrono::nanoseconds time) {
  // Of integers only: the point of a printed double is the locale's.
  const std::string rest = std::to_string(time.count() % 1000);
  return std::to_string(time.count() / 1000) + "." + std::string(3 - rest.size(), '0') + rest;
}

}  // namespace

std::string printable(std::string text) {
  for (char& c : text) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return text;
}

std::string profile_path(const std::string& value, std::string& path) {
  if (!ends_well(value)) return std::string("a file name that ends in ") + kEnding + ". Choose another name.";
  path = absolute(value);
  if (path.empty()) return "an absolute path, since there is no current folder. Give the path from / on.";
  std::string fault;
  const int file = open_to_append(path, fault);
  if (file < 0) return "a regular file that can be written (" + fault + "). Choose another path.";
  close(file);
  return {};
}

void Profile::add(int64_t rows, std::chrono::nanoseconds time) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto entry = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.rows == rows; });
  if (entry == entries_.end()) entry = entries_.insert(entry, {rows, 0, {}});
  entry->calls += 1;
  entry->time += time;
}

std::string Profile::line() const {
  std::string runs;
  for (const Entry& e : entries_) {
    runs += (runs.empty() ? "{" : ", {") + member("M", e.rows) + ", " + member("calls", e.calls) + ", " +
            member("us", microseconds(e.time)) + "}";
  }
  const Attributes& a = node_.attributes;
  std::string text = "{" + member("node", quoted(node_.name)) + ", " + member("op", quoted(node_.op));
  text += ", " + member("kernel", quoted(node_.kernel)) + ", " + member("weights", quoted(node_.weights));
  text += ", " + member("bits", a.bits) + ", " + member("K", a.K) + ", " + member("N", a.N);
  text += ", " + member("group_size", a.group_size) + ", " + member("accuracy_level", a.accuracy_level);
  return text + ", " + member("runs", "[" + runs + "]") + "}\n";
}

std::unique_ptr<Profile> profile_of(const CustomOp& registration, const OrtKernelInfo* info,
                                    const Attributes& attributes, const char* kernel, bool resident) {
  if (registration.settings->profile.empty()) return nullptr;
  ProfiledNode node{node_name(*registration.calls, info), registration.op->name, kernel,
                    resident ? "resident" : "mapped", attributes};
  return std::make_unique<Profile>(registration.settings->profile, std::move(node));
}

Profile::~Profile() {
  try {
    const std::string text = line();
    std::string fault;
    const int file = open_to_append(path_, fault);
    if (file < 0 || !append(file, text, fault)) {
      std::fprintf(stderr, "bcq: the profile %s cannot be written: %s\n", path_.c_str(), fault.c_str());
    }
    if (file >= 0) close(file);
  } catch (...) {
    // No memory for a line of statistics: the session ends all the same.
  }
}

}  // namespace bcq::ort
