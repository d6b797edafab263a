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

bool ends_well(const std::string& path) {
  const size_t length = std::strlen(kEnding);
  return path.size() > length && path.compare(path.size() - length, length, kEnding) == 0;
}

// A descriptor to append with, or -1 and errno.
int open_to_append(const std::string& path) {
  const int file = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
  struct stat facts;
  if (file >= 0 && (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode))) {
    close(file);
    errno = EINVAL;
    return -1;
  }
  return file;
}

std::string absolute(const std::string& path) {
  if (path[0] == '/') return path;
  char folder[PATH_MAX];
  return getcwd(folder, sizeof folder) == nullptr ? path : std::string(folder) + "/" + path;
}

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : printable(text)) json += (c == '"' || c == '\\') ? std::string("\\") + c : std::string(1, c);
  return json + "\"";
}

std::string member(const char* name, const std::string& value) { return std::string("\"") + name + "\": " + value; }

std::string member(const char* name, int64_t value) { return member(name, std::to_string(value)); }

std::string microseconds(std::chrono::nanoseconds time) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", double(time.count()) / 1000);
  return text;
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
  const int file = open_to_append(path);
  if (file < 0) {
    return std::string("a regular file that can be written (") + std::strerror(errno) + "). Choose another path.";
  }
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
    const int file = open_to_append(path_);
    const bool written = file >= 0 && write(file, text.data(), text.size()) == ssize_t(text.size());
    if (!written) {
      std::fprintf(stderr, "bcq: the profile %s cannot be written: %s\n", path_.c_str(), std::strerror(errno));
    }
    if (file >= 0) close(file);
  } catch (...) {
    // No memory for a line of statistics: the session ends all the same.
  }
}

}  // namespace bcq::ort
