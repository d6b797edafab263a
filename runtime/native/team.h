// SPDX-License-Identifier: Apache-2.0
// The threads of a decoder: its own, or those of the caller. What is cut into parts gives the same bits for any number.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "capi/bcq.h"

namespace bcq::native {

class Team {
 public:
  // threads: how many work, this one included. `by`: they are the caller's; NULL: they are started here.
  // Throws std::system_error when the system gives no more.
  Team(size_t threads, BcqParallelFor by, void* pool);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  size_t size() const { return size_; }
  // For bcq_gemm; NULL when one thread works alone.
  BcqParallelFor parallel_for() const { return size_ > 1 ? for_ : nullptr; }
  void* pool() const { return pool_; }

  // Calls f(begin, end, part) for shares of [0, units), at most one for each thread; parts have numbers below size().
  template <class F>
  void share(int64_t units, const F& f) const {
    struct Job {
      const F& f;
      int64_t units, parts;
    } job = {f, units, std::min(units, int64_t(size_))};
    const BcqTask task = [](void* data, size_t part) {
      const Job& asked = *static_cast<const Job*>(data);
      const int64_t at = int64_t(part);
      asked.f(asked.units * at / asked.parts, asked.units * (at + 1) / asked.parts, part);
    };
    if (job.parts > 1) for_(pool_, task, size_t(job.parts), &job);
    else if (job.parts == 1) f(0, units, size_t(0));
  }

  // The same for rows of `width` elements each, where they are enough work to be worth it.
  template <class F>
  void share_rows(int64_t rows, int64_t width, const F& f) const {
    constexpr int64_t kFew = 1 << 15;
    if (rows * width < kFew) f(int64_t(0), rows, size_t(0));
    else share(rows, f);
  }

 private:
  static void run(void* team, BcqTask task, size_t parts, void* data);
  void stop();
  void work();
  bool take_part();
  void sleep();

  const size_t size_;
  BcqParallelFor for_;
  void* pool_;
  std::vector<std::thread> threads_;
  // Number of the job, how many parts it has, and which is next: 32, 16 and 16 bits.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<BcqTask> task_{nullptr};
  std::atomic<void*> data_{nullptr};
  std::atomic<size_t> done_{0}, sleepers_{0};
  std::atomic<bool> stopping_{false};
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;  // std::condition_variable asks for a newer libstdc++
  pthread_cond_t wake_ = PTHREAD_COND_INITIALIZER;
};

}  // namespace bcq::native
