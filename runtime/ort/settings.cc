// SPDX-License-Identifier: Apache-2.0
#include "ort/settings.h"

#include <cstdlib>

#include "ort/node.h"
#include "ort/profile.h"

namespace bcq::ort {
namespace {

constexpr size_t kLongestShown = 200;

// Where a value comes from, for messages, and the value.
struct Value {
  std::string name;
  std::string text;
};

Value value_of(const Calls& calls, const OrtSessionOptions* options, const char* key, const char* variable) {
  const char* set = std::getenv(variable);
  if (set != nullptr && *set != '\0') return {variable, set};
  return {key, config_entry(calls, options, key)};
}

[[noreturn]] void refuse(const Value& value, const std::string& expected) {
  throw Refusal{value.name + ": got '" + printable(value.text.substr(0, kLongestShown)) + "', expected " + expected};
}

Weights read_weights(const Value& value) {
  if (value.text.empty()) return Weights::automatic;
  for (const Weights weights : {Weights::automatic, Weights::mapped, Weights::resident}) {
    if (value.text == name_of(weights)) return weights;
  }
  refuse(value, "auto, mapped or resident. Set one of them or nothing.");
}

std::string read_profile(const Value& value) {
  if (value.text.empty()) return {};
  std::string path;
  const std::string problem = profile_path(value.text, path);
  if (!problem.empty()) refuse(value, problem);
  return path;
}

}  // namespace

const char* name_of(Weights weights) {
  if (weights == Weights::automatic) return "auto";
  return weights == Weights::mapped ? "mapped" : "resident";
}

std::string config_entry(const Calls& calls, const OrtSessionOptions* options, const char* key) {
  int present = 0;
  check(calls, calls.HasSessionConfigEntry(options, key, &present));
  if (present == 0) return {};
  size_t size = 0;  // with the terminating zero
  check(calls, calls.GetSessionConfigEntry(options, key, nullptr, &size));
  std::string text(size, '\0');
  check(calls, calls.GetSessionConfigEntry(options, key, text.data(), &size));
  text.resize(size == 0 ? 0 : size - 1);
  return text;
}

Settings read_settings(const Calls& calls, const OrtSessionOptions* options) {
  Settings settings;
  settings.weights = read_weights(value_of(calls, options, "bcq.weights", "BCQ_WEIGHTS"));
  settings.profile = read_profile(value_of(calls, options, "bcq.profile", "BCQ_PROFILE"));
  return settings;
}

}  // namespace bcq::ort
