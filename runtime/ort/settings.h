// SPDX-License-Identifier: Apache-2.0
// What a program may ask of the library, by entries of its session options or by environment variables, which win.
// ONNX Runtime 1.21 shows session options only while the library is registered: entries must be set before.
#pragma once

#include <string>

#include "ort/ort_abi.h"

namespace bcq::ort {

// How codes are held: as mapped bytes of the file; as a private copy; or as a copy where the kernel has an order of its
// own and all copies take at most half of the memory that is left, mapped elsewhere.
enum class Weights { automatic, mapped, resident };
const char* name_of(Weights weights);

struct Settings {
  Weights weights = Weights::automatic;  // bcq.weights, BCQ_WEIGHTS: auto, mapped, resident
  // bcq.profile, BCQ_PROFILE: absolute path of a .jsonl file that gets one line per node when a session ends, or empty.
  std::string profile;

  // Equal text, equal settings. The library keeps one registration, a few hundred bytes, for each text that it has met
  // until the process ends, because sessions point into it: a program should reuse a few profiles and not name millions.
  std::string text() const {
    return std::string("weights=") + name_of(weights) + " profile=" + profile;
  }
};

// Throws Refusal that names an entry whose value cannot be used.
Settings read_settings(const Calls& calls, const OrtSessionOptions* options);

// The value of a session configuration entry, or empty when there is none.
std::string config_entry(const Calls& calls, const OrtSessionOptions* options, const char* key);

}  // namespace bcq::ort
