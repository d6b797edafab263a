// SPDX-License-Identifier: Apache-2.0
// Runs a kernel over parts of its work: first the activations of all rows, then the row tiles.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/bcq_core.h"
#include "core/brain.h"
#include "core/dispatch.h"

namespace bcq {
namespace {

// Figures and their measurement: docs/decisions/0009-weights-in-memory.md.

// A fork and join of ONNX Runtime's pool costs 2 to 3 us, in which a thread reads 32 KB of codes at one row of
// activations: twice that is worth two parts. More parts than threads even out a busy machine.
constexpr int64_t kBytesPerPart = 64 * 1024;
constexpr int64_t kMostParts = 32;
// Several rows of activations are looked up over a few tiles at once, before the next inputs: parts keep so many.
constexpr int64_t kTilesPerPart = 4;

// Rows of activations that are prepared together, at most: then codes are read once a panel and scratch is small. Fewer
// where scratch would outgrow the caches, but whole sets of the rows that kernels compute at once.
constexpr int64_t kPanelRows = 64;
constexpr int64_t kRowSet = 16;
constexpr size_t kPanelBytes = size_t(4) << 20;

int64_t tiles(const MatMulProblem& p) { return (p.N + kTileRows - 1) / kTileRows; }

size_t parts_for(double bytes, int64_t units) {
  const double most = double(std::max<int64_t>(1, std::min(units, kMostParts)));
  return size_t(std::min(most, std::ceil(bytes / double(kBytesPerPart))));
}

size_t matmul_parts(const MatMulProblem& p) {
  const int64_t units = p.M == 1 ? tiles(p) : tiles(p) / kTilesPerPart;
  return parts_for(double(p.N) * double(p.K) * p.bits / 8 * double(p.M), units);
}

// What a kernel needs for p.M rows, and behind that the float32 rows of a bfloat16 problem.
size_t kernel_bytes(const MatMulProblem& p, const MatMulKernel& kernel) {
  if (kernel.scratch_bytes == nullptr) return 0;
  return kernel.scratch_bytes(p.a_is_brain != 0 ? widened(p, nullptr) : p);
}
size_t scratch_bytes(const MatMulProblem& p, const MatMulKernel& kernel) {
  const size_t kernels = kernel_bytes(p, kernel);
  return p.a_is_brain != 0 ? whole_lines(kernels) + widened_bytes(p) : kernels;
}

int64_t panel_rows(const MatMulProblem& p, const MatMulKernel& kernel) {
  MatMulProblem row = p;
  row.M = 1;
  const size_t bytes = scratch_bytes(row, kernel);
  if (bytes == 0 || p.M <= kRowSet) return kPanelRows;
  const int64_t fitting = int64_t(kPanelBytes / bytes);
  return std::min(kPanelRows, std::max(kRowSet, fitting / kRowSet * kRowSet));
}

struct Range {
  int64_t begin;
  int64_t end;
};

Range share(int64_t units, size_t part, size_t parts) {
  const int64_t each = units / int64_t(parts);
  const int64_t longer = units % int64_t(parts);  // the first ones take one more
  const int64_t at = int64_t(part);
  const int64_t begin = at * each + std::min(at, longer);
  return {begin, begin + each + (at < longer ? 1 : 0)};
}

void for_each_part(BcqParallelFor parallel_for, void* pool, BcqTask task, size_t parts, void* data) {
  if (parallel_for != nullptr && parts > 1) {
    parallel_for(pool, task, parts, data);
    return;
  }
  for (size_t part = 0; part < parts; ++part) task(data, part);
}

struct MatMulJob {
  const MatMulProblem& problem;
  const MatMulKernel& kernel;
  void* scratch;
  int64_t units;
  size_t parts;
};

void prepare_part(void* data, size_t part) {
  const MatMulJob& job = *static_cast<MatMulJob*>(data);
  const Range rows = share(job.units, part, job.parts);
  if (rows.begin < rows.end) job.kernel.prepare(job.problem, job.scratch, rows.begin, rows.end);
}

void run_part(void* data, size_t part) {
  const MatMulJob& job = *static_cast<MatMulJob*>(data);
  const Range range = share(job.units, part, job.parts);
  if (range.begin < range.end) job.kernel.run(job.problem, job.scratch, range.begin, range.end);
}

struct GatherJob {
  const GatherProblem& problem;
  const GatherKernel& kernel;
  size_t parts;
};

void gather_part(void* data, size_t part) {
  const GatherJob& job = *static_cast<GatherJob*>(data);
  const Range range = share(job.problem.count, part, job.parts);
  if (range.begin < range.end) job.kernel.run(job.problem, range.begin, range.end);
}

template <typename Kernel>
const char* refuse(const Kernel* kernel) {
  if (kernel == nullptr) return "unknown kernel name";
  if ((kernel->cpu_flags & ~bcq_detected_cpu_flags()) != 0) return "this CPU lacks what the kernel needs";
  return nullptr;
}

// Kernels may trust that `planes` is how many there are.
template <typename Problem>
Problem with_planes(const Problem& p) {
  Problem told = p;
  if (told.planes == 0) told.planes = told.bits;
  return told;
}

// The lines of the planes that are used: 16 words of one chunk and one plane each.
void order_lines(const MatMulProblem& p, const MatMulKernel& kernel, uint32_t* to) {
  const int64_t all_chunks = tiles(p) * ((p.K + kWordBits - 1) / kWordBits);
  for (int64_t chunk = 0; chunk < all_chunks; ++chunk) {
    const uint32_t* line = p.codes + chunk * p.planes * kTileRows;
    for (int64_t plane = 0; plane < p.bits; ++plane, line += kTileRows, to += kTileRows) {
      if (kernel.order_line != nullptr) kernel.order_line(line, to);
      else std::memcpy(to, line, kTileRows * sizeof(uint32_t));
    }
  }
}

// The rows [begin, begin + rows) of a problem, or as many as there are.
MatMulProblem panel_of(const MatMulProblem& p, int64_t begin, int64_t rows) {
  const size_t element = p.a_is_half != 0 || p.a_is_brain != 0 ? sizeof(uint16_t) : sizeof(float);
  MatMulProblem panel = with_planes(p);
  panel.M = std::min(rows, p.M - begin);
  panel.a = static_cast<const uint8_t*>(p.a) + size_t(begin) * size_t(p.a_stride) * element;
  panel.y = static_cast<uint8_t*>(p.y) + size_t(begin) * size_t(p.y_stride) * element;
  return panel;
}

// A bfloat16 panel and the same one in float32.
struct BrainJob {
  const MatMulProblem& panel;
  const MatMulProblem& wide;
  size_t parts;
};

template <void (*convert)(const MatMulProblem&, const MatMulProblem&, int64_t)>
void convert_part(void* data, size_t part) {
  const BrainJob& job = *static_cast<BrainJob*>(data);
  const Range rows = share(job.panel.M, part, job.parts);
  for (int64_t m = rows.begin; m < rows.end; ++m) convert(job.panel, job.wide, m);
}

void run_panel(const MatMulProblem& p, const MatMulKernel& kernel, void* scratch, size_t parts,
               BcqParallelFor parallel_for, void* pool) {
  if (parts == 0) parts = matmul_parts(p);
  if (kernel.prepare != nullptr) {
    const size_t row_parts = std::min<size_t>(parts, size_t(p.M));
    MatMulJob job{p, kernel, scratch, p.M, row_parts};
    for_each_part(parallel_for, pool, prepare_part, row_parts, &job);
  }
  MatMulJob job{p, kernel, scratch, tiles(p), parts};
  for_each_part(parallel_for, pool, run_part, parts, &job);
}

void run_brain_panel(const MatMulProblem& p, const MatMulKernel& kernel, void* scratch, size_t parts,
                     BcqParallelFor parallel_for, void* pool) {
  const MatMulProblem wide = widened(p, static_cast<unsigned char*>(scratch) + whole_lines(kernel_bytes(p, kernel)));
  BrainJob job{p, wide, std::min(parts == 0 ? matmul_parts(p) : parts, size_t(p.M))};
  for_each_part(parallel_for, pool, convert_part<widen_row>, job.parts, &job);
  run_panel(wide, kernel, scratch, parts, parallel_for, pool);
  for_each_part(parallel_for, pool, convert_part<narrow_row>, job.parts, &job);
}

}  // namespace
}  // namespace bcq

extern "C" {

size_t bcq_matmul_scratch_bytes(const BcqMatMulProblem* problem, const char* name) {
  const bcq::MatMulKernel* kernel =
      name == nullptr ? bcq::select_matmul(*problem, bcq_cpu_flags()) : bcq::find_matmul(name);
  if (kernel == nullptr) return 0;
  bcq::MatMulProblem panel = *problem;
  panel.M = std::min(panel.M, bcq::panel_rows(*problem, *kernel));
  return bcq::scratch_bytes(panel, *kernel);
}

const char* bcq_matmul(const BcqMatMulProblem* problem, const char* name, void* scratch, size_t parts,
                       BcqParallelFor parallel_for, void* pool) {
  const bcq::MatMulKernel* kernel =
      name == nullptr ? bcq::select_matmul(*problem, bcq_cpu_flags()) : bcq::find_matmul(name);
  const char* error = bcq::refuse(kernel);
  if (error != nullptr) return error;
  if (kernel->supports != nullptr && !kernel->supports(*problem)) return "the kernel does not take this problem";
  const int64_t rows = bcq::panel_rows(*problem, *kernel);
  const auto run = problem->a_is_brain != 0 ? bcq::run_brain_panel : bcq::run_panel;
  for (int64_t begin = 0; begin < problem->M; begin += rows) {
    run(bcq::panel_of(*problem, begin, rows), *kernel, scratch, parts, parallel_for, pool);
  }
  return nullptr;
}

const char* bcq_matmul_make_resident(const BcqMatMulProblem* problem, const char* name, uint32_t* to) {
  const bcq::MatMulKernel* kernel =
      name == nullptr ? bcq::select_matmul(*problem, bcq_cpu_flags()) : bcq::find_matmul(name);
  const char* error = bcq::refuse(kernel);
  if (error != nullptr) return error;
  if (problem->resident != 0) return "the codes are a resident copy already";
  bcq::order_lines(bcq::with_planes(*problem), *kernel, to);
  return nullptr;
}

int32_t bcq_matmul_has_own_order(const char* name) {
  const bcq::MatMulKernel* kernel = bcq::find_matmul(name);
  return kernel != nullptr && kernel->order_line != nullptr;
}

const char* bcq_gather(const BcqGatherProblem* problem, const char* name, size_t parts, BcqParallelFor parallel_for,
                       void* pool) {
  const bcq::GatherKernel* kernel =
      name == nullptr ? bcq::select_gather(*problem, bcq_cpu_flags()) : bcq::find_gather(name);
  const char* error = bcq::refuse(kernel);
  if (error != nullptr || problem->count == 0) return error;
  if (parts == 0) parts = bcq::parts_for(double(problem->count) * double(problem->K) * 4, problem->count);
  const bcq::GatherProblem told = bcq::with_planes(*problem);
  bcq::GatherJob job{told, *kernel, parts};
  bcq::for_each_part(parallel_for, pool, bcq::gather_part, parts, &job);
  return nullptr;
}

int64_t bcq_gather_bad_index(const BcqGatherProblem* problem) {
  for (int64_t i = 0; i < problem->count; ++i) {
    const int64_t index = problem->index_is_int32 ? static_cast<const int32_t*>(problem->indices)[i]
                                                  : static_cast<const int64_t*>(problem->indices)[i];
    if (index < -problem->N || index >= problem->N) return i;
  }
  return -1;
}

}  // extern "C"
