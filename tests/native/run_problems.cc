// SPDX-License-Identifier: Apache-2.0
// Computes problems from a file by the plain C ABI, for CPUs on which no Python runs (see tests/other_cpu.py):
//   run_problems FILE_OF_PROBLEMS FILE_OF_RESULTS
// On standard output: the instruction set, then per operator and accuracy level the selected kernel.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/bcq_core.h"

namespace {

// As other_cpu.py writes it, all fields of eight bytes.
struct Header {
  int64_t is_gather, M, K, N, group_size, bits, planes, is_half, accuracy_level, parts, resident;
  char kernel[32];
};

void fail(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::exit(1);
}

bool read_bytes(FILE* file, void* to, size_t bytes) { return bytes == 0 || std::fread(to, bytes, 1, file) == 1; }

void write_bytes(FILE* file, const void* from, size_t bytes) {
  if (bytes != 0 && std::fwrite(from, bytes, 1, file) != 1) fail("cannot write");
}

// An array with its size in front, in memory that begins at a multiple of 64 bytes and is exactly as long.
class Array {
 public:
  explicit Array(FILE* file) {
    int64_t bytes = 0;
    if (!read_bytes(file, &bytes, sizeof bytes)) fail("the file of problems ends early");
    resize(size_t(bytes));
    if (!read_bytes(file, data(), size_)) fail("the file of problems ends early");
  }
  explicit Array(size_t bytes) { resize(bytes); }
  ~Array() { std::free(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  void* data() { return size_ == 0 ? nullptr : data_; }
  size_t size() const { return size_; }

 private:
  void resize(size_t bytes) {
    size_ = bytes;
    if (posix_memalign(&data_, 64, bytes + 64) != 0) fail("out of memory");
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

const uint16_t* halves(Array& array) { return static_cast<const uint16_t*>(array.data()); }

// The fields that both operators' problems have.
template <typename Problem>
Problem problem_of(const Header& h, Array& codes, Array& alpha_1, Array& alpha_rest, Array& offset) {
  Problem p = {};
  p.K = h.K;
  p.N = h.N;
  p.group_size = h.group_size;
  p.bits = int32_t(h.bits);
  p.planes = int32_t(h.planes);
  p.codes = static_cast<const uint32_t*>(codes.data());
  p.alpha_1 = halves(alpha_1);
  p.alpha_rest = halves(alpha_rest);
  p.offset = halves(offset);
  return p;
}

const char* gather(const Header& h, BcqGatherProblem p, Array& indices, Array& y) {
  p.count = h.M;
  p.indices = indices.data();
  p.y = static_cast<float*>(y.data());
  return bcq_gather(&p, h.kernel, size_t(h.parts), nullptr, nullptr);
}

const char* multiply(const Header& h, BcqMatMulProblem p, Array& a, Array& y) {
  p.M = h.M;
  p.a_is_half = int32_t(h.is_half);
  p.accuracy_level = int32_t(h.accuracy_level);
  p.a = a.data();
  p.a_stride = h.K;
  p.y = y.data();
  p.y_stride = h.N;
  Array copy(h.resident == 0 ? 0 : size_t((h.N + 15) / 16 * ((h.K + 31) / 32) * h.bits * 64));
  if (h.resident != 0) {
    const char* error = bcq_matmul_make_resident(&p, h.kernel, static_cast<uint32_t*>(copy.data()));
    if (error != nullptr) return error;
    p.codes = static_cast<const uint32_t*>(copy.data());
    p.resident = 1;
    p.planes = 0;
  }
  Array scratch(bcq_matmul_scratch_bytes(&p, h.kernel));
  return bcq_matmul(&p, h.kernel, scratch.data(), size_t(h.parts), nullptr, nullptr);
}

void solve(const Header& h, FILE* problems, FILE* results) {
  Array a(problems), codes(problems), alpha_1(problems), alpha_rest(problems), offset(problems);
  const int64_t outputs = h.M * (h.is_gather ? h.K : h.N);
  Array y(size_t(outputs) * (h.is_half ? 2 : 4));
  const char* error =
      h.is_gather ? gather(h, problem_of<BcqGatherProblem>(h, codes, alpha_1, alpha_rest, offset), a, y)
                  : multiply(h, problem_of<BcqMatMulProblem>(h, codes, alpha_1, alpha_rest, offset), a, y);
  if (error != nullptr) fail(error);
  write_bytes(results, y.data(), y.size());
}

void tell_choices() {
  const uint32_t flags = bcq_cpu_flags();
  const BcqGatherProblem rows = {};
  std::printf("%s %s", bcq_isa_name(flags), bcq_select_gather(&rows, flags));
  for (int32_t level = 0; level < 5; ++level) {
    BcqMatMulProblem p = {};
    p.M = 1, p.K = p.N = 4096, p.group_size = 128, p.bits = 3, p.accuracy_level = level;
    std::printf(" %s", bcq_select_matmul(&p, flags));
  }
  std::printf("\n");
}

}  // namespace

int main(int count, char** arguments) {
  if (bcq_isa_error() != nullptr) fail(bcq_isa_error());
  tell_choices();
  if (count < 3) return 0;
  FILE* problems = std::fopen(arguments[1], "rb");
  FILE* results = std::fopen(arguments[2], "wb");
  if (problems == nullptr || results == nullptr) fail("cannot open the files");
  Header header;
  while (std::fread(&header, sizeof header, 1, problems) == 1) solve(header, problems, results);
  std::fclose(problems);
  return std::fclose(results) == 0 ? 0 : 1;
}
