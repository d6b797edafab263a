// SPDX-License-Identifier: Apache-2.0
#include "native/team.h"

#include <sched.h>

namespace bcq::native {
namespace {

// A product follows the one before after microseconds: so long a thread that has nothing to do looks for work before it
// sleeps, which takes it tens of microseconds to come back from.
constexpr int kLooks = 4000;
constexpr size_t kMostParts = 0xffff;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

uint64_t next_of(uint64_t ticket) { return ticket & kMostParts; }
uint64_t parts_of(uint64_t ticket) { return ticket >> 16 & kMostParts; }
bool has_work(uint64_t ticket) { return next_of(ticket) < parts_of(ticket); }

}  // namespace

Team::Team(size_t threads, BcqParallelFor by, void* pool)
    : size_(threads), for_(by == nullptr ? run : by), pool_(by == nullptr ? this : pool) {
  if (by != nullptr) return;
  try {
    for (size_t i = 1; i < threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  stopping_ = true;
  pthread_mutex_lock(&mutex_);
  pthread_cond_broadcast(&wake_);
  pthread_mutex_unlock(&mutex_);
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(void* team, BcqTask task, size_t parts, void* data) {
  Team& self = *static_cast<Team*>(team);
  if (parts > kMostParts) {
    for (size_t part = 0; part < parts; ++part) task(data, part);
    return;
  }
  self.task_.store(task, std::memory_order_relaxed);
  self.data_.store(data, std::memory_order_relaxed);
  self.done_.store(0, std::memory_order_relaxed);
  const uint64_t number = (self.ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  self.ticket_ = number << 32 | uint64_t(parts) << 16;
  if (self.sleepers_ != 0) {
    pthread_mutex_lock(&self.mutex_);
    pthread_cond_broadcast(&self.wake_);
    pthread_mutex_unlock(&self.mutex_);
  }
  while (self.take_part()) {
  }
  for (int looks = 0; self.done_.load(std::memory_order_acquire) != parts; ++looks) {
    if (looks < kLooks) pause();
    else sched_yield();
  }
}

// The job's fields stay as they are until all its parts are done, so a part that could be taken is one of this job.
bool Team::take_part() {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (has_work(ticket)) {
    const BcqTask task = task_.load(std::memory_order_relaxed);
    void* data = data_.load(std::memory_order_relaxed);
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    task(data, size_t(next_of(ticket)));
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }
  return false;
}

void Team::work() {
  while (!stopping_) {
    int looks = 0;
    while (looks < kLooks && !take_part()) ++looks, pause();
    if (looks == kLooks) sleep();
  }
}

void Team::sleep() {
  pthread_mutex_lock(&mutex_);
  ++sleepers_;
  while (!stopping_ && !has_work(ticket_)) pthread_cond_wait(&wake_, &mutex_);
  --sleepers_;
  pthread_mutex_unlock(&mutex_);
}

}  // namespace bcq::native
