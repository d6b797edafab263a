// SPDX-License-Identifier: Apache-2.0
// How often a node ran and how long, written as one line of JSON when the node goes away.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/validate.h"
#include "ort/custom_op.h"

namespace bcq::ort {

// The text with everything but printable ASCII replaced by '?', for messages and files.
std::string printable(std::string text);

// Gives the absolute `path` of a profile that can be written, or says what was expected instead. Configuration entries
// may come from a folder that somebody else made, so a profile is a regular file named *.jsonl,
// no link of either kind, and empty or the beginning of a profile.
std::string profile_path(const std::string& value, std::string& path);

// What does not change over the runs of a node.
struct ProfiledNode {
  std::string name;
  std::string op;
  std::string kernel;
  std::string weights;
  Attributes attributes;
};

// Counts runs by their number of rows. Any thread may call add.
class Profile {
 public:
  Profile(std::string path, ProfiledNode node) : path_(std::move(path)), node_(std::move(node)) {}
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  void add(int64_t rows, std::chrono::nanoseconds time);

 private:
  struct Entry {
    int64_t rows;
    int64_t calls;
    std::chrono::nanoseconds time;
  };
  std::string line() const;

  std::string path_;
  ProfiledNode node_;
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

// The profile of a node, or null when the session asks for none.
std::unique_ptr<Profile> profile_of(const CustomOp& registration, const OrtKernelInfo* info,
                                    const Attributes& attributes, const char* kernel, bool resident);

// Times a scope for a profile; does nothing without one.
class Stopwatch {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Stopwatch(Profile* profile) : profile_(profile) {
    if (profile_ != nullptr) begin_ = Clock::now();
  }
  void stop(int64_t rows) const {
    if (profile_ != nullptr) profile_->add(rows, Clock::now() - begin_);
  }

 private:
  Profile* profile_;
  Clock::time_point begin_;
};

}  // namespace bcq::ort
