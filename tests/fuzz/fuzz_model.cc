// SPDX-License-Identifier: Apache-2.0
// Fuzzes the reader of exported models (bcq.h): any bytes for the .onnx file, beside the data of a healthy export. It is
// refused with one clean line, or opens, and then every matrix lies where the reader may point, is found by its name and
// computes. BCQ_FUZZ_EXPORT names a folder with model.onnx and model.onnx.data; the input is written there.
#include <sanitizer/asan_interface.h>
#include <sys/stat.h>

#include <fstream>
#include <sstream>
#include <vector>

#include "bytes.h"
#include "capi/bcq.h"
#include "core/shown.h"
#include "onnx_mutator.h"

namespace {

constexpr size_t kWhyBytes = 512;
constexpr int64_t kTile = 16, kWord = 32;
std::string folder;  // NOLINT: set once, by LLVMFuzzerInitialize
volatile uint64_t sink;

// Addresses of mapped files of the folder, each up to the end of the file, not of its last page.
using Mappings = std::vector<std::pair<uintptr_t, uintptr_t>>;

Mappings mappings() {
  Mappings found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t path = line.find(folder);
    struct stat file;
    if (path == std::string::npos || stat(line.c_str() + path, &file) != 0) continue;
    const uintptr_t first = std::stoull(line, nullptr, 16);
    found.push_back({first, first + uintptr_t(file.st_size)});
  }
  return found;
}

// Every part lies inside a mapped file or, when it was copied, inside one block of the heap; all of it is read.
void check_place(const Mappings& files, const void* data, size_t bytes, const char* what) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(data);
  bool inside = false;
  for (const auto& file : files) inside = inside || (first >= file.first && first + bytes <= file.second);
  char name[1];
  void* begin = nullptr;
  size_t size = 0;
  __asan_locate_address(const_cast<void*>(data), name, sizeof name, &begin, &size);
  const uintptr_t block = reinterpret_cast<uintptr_t>(begin);
  inside = inside || (begin != nullptr && first >= block && first + bytes <= block + size);
  if (!inside) fuzz::found(std::string(what) + " lies outside of what was mapped");
  for (size_t i = 0; i < bytes; ++i) sink = sink + static_cast<const uint8_t*>(data)[i];
}

void check_places(const Mappings& files, const BcqMatrix& w) {
  const size_t tiles = size_t((w.N + kTile - 1) / kTile), chunks = size_t((w.K + kWord - 1) / kWord);
  const size_t factors = tiles * size_t((w.K - 1) / w.group_size + 1) * kTile * sizeof(uint16_t);
  check_place(files, w.codes, tiles * chunks * size_t(w.planes) * kTile * sizeof(uint32_t), "codes");
  check_place(files, w.alpha_1, factors, "alpha_1");
  if (w.bits > 1) check_place(files, w.alpha_rest, factors * size_t(w.bits - 1), "alpha_rest");
  if (w.offset != nullptr) check_place(files, w.offset, factors, "offset");
}

void check_computes(const BcqMatrix& w) {
  const std::vector<float> a(size_t(w.K), 1.0f);
  std::vector<float> y(size_t(w.N)), row(size_t(w.K));
  BcqGemm gemm = {};
  gemm.struct_bytes = sizeof gemm;
  gemm.matrix = &w, gemm.M = 1, gemm.a = a.data(), gemm.y = y.data();
  gemm.scratch_bytes = bcq_gemm_scratch_bytes(&gemm);
  gemm.scratch = std::aligned_alloc(64, (gemm.scratch_bytes / 64 + 1) * 64);
  const char* wrong = bcq_gemm(&gemm);
  std::free(gemm.scratch);
  if (wrong != nullptr) fuzz::found(std::string("an opened matrix does not multiply: ") + wrong);
  for (const int64_t index : {int64_t(0), w.N - 1, -w.N}) {
    if (const char* why = bcq_rows(&w, &index, 1, row.data())) fuzz::found(std::string("no row: ") + why);
  }
  if (bcq_rows(&w, &w.N, 1, row.data()) == nullptr) fuzz::found("a row beyond the last was accepted");
}

void check_model(const BcqModel* model) {
  const size_t count = bcq_model_count(model);
  const Mappings files = mappings();
  for (size_t i = 0; i < count; ++i) {
    const BcqMatrix* matrix = bcq_model_matrix(model, i);
    const char* name = bcq_model_name(model, i);
    if (matrix == nullptr || name == nullptr) fuzz::found("a matrix without a name");
    if (std::strlen(name) != 0 && bcq_model_find(model, name) == nullptr) fuzz::found("a name that is not found");
    check_places(files, *matrix);
    if (i < 4) check_computes(*matrix);
  }
  if (bcq_model_matrix(model, count) != nullptr || bcq_model_name(model, count) != nullptr) fuzz::found("one too many");
}

void check_refusal(const char* why, size_t bytes) {
  if (bytes == 0) return;
  const std::string text(why, strnlen(why, bytes));
  if (text.size() == bytes) fuzz::found("a message without an end");
  if (text.empty() && bytes > 8) fuzz::found("a refusal without a reason");
  if (bcq::shown(text, text.size()) != text) fuzz::found("a message that is no clean text: " + text);
}

std::string content(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

bool open_and_check(const std::string& path, size_t why_bytes) {
  std::vector<char> why(why_bytes, 'x');
  BcqModel* model = bcq_model_open(path.c_str(), why.data(), why.size());
  if (model == nullptr) check_refusal(why.data(), why.size());
  else check_model(model);
  bcq_model_close(model);
  return model != nullptr;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* named = std::getenv("BCQ_FUZZ_EXPORT");
  char* real = realpath(named == nullptr ? "." : named, nullptr);  // as /proc/self/maps has it
  folder = real == nullptr ? "." : real;
  std::free(real);
  if (!open_and_check(folder, kWhyBytes)) fuzz::found("BCQ_FUZZ_EXPORT: the healthy export is refused");
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  const std::string before(reinterpret_cast<const char*>(data), size);
  const std::string after = fuzz::OnnxMutator(seed).changed(before);
  if (after.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, after.data(), after.size());
  return after.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string path = folder + "/fuzzed.onnx";
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), std::streamsize(size));
  const bool opened = open_and_check(path, kWhyBytes);
  if (open_and_check(path, size % 40) != opened) fuzz::found("two attempts that differ");
  return 0;
}
