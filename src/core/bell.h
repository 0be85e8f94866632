#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "core/spin_budget.h"

namespace tandem {

/// Wakes threads that wait for something that other threads store: an event count.
///
/// Whoever changes what is waited for does so with seq_cst and then calls `ring_if_awaited`: of "announce sleep, look"
/// there and "change, look for sleepers" here one sees the other.
class Bell {
 public:
  /// Wakes all waiting threads.
  void ring() noexcept {
    count_.fetch_add(1, std::memory_order_release);
    count_.notify_all();
  }

  /// Wakes all waiting threads; does next to nothing when no thread sleeps.
  void ring_if_awaited() noexcept {
    if (sleepers_.load(std::memory_order_seq_cst) > 0) ring();
  }

  /// Returns when `done()`, which looks with seq_cst, is true: looks `yields` times, then sleeps between rings.
  template <class Done>
  void wait(Done done, int yields) noexcept(noexcept(done())) {
    for (int i = 0; i < yields; ++i) {
      if (done()) return;
      std::this_thread::yield();
    }
    while (!done()) {
      // acquire: before the looks below, so that a ring after them is not missed.
      const std::uint32_t before = count_.load(std::memory_order_acquire);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      if (!done()) count_.wait(before, std::memory_order_acquire);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

 private:
  alignas(64) std::atomic<std::uint32_t> count_{0};
  std::atomic<int> sleepers_{0};
};

}  // namespace tandem
