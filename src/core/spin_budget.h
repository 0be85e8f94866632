#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace tandem {

/// How long a thread tries before it sleeps.
struct SpinBudget {
  int spins;   ///< looks with a pause between them
  int yields;  ///< looks after which the core is offered to another thread
};

/// A budget for `threads` threads that wait for each other: with more threads than cores, spinning only keeps those
/// waited for from running.
SpinBudget spin_budget(int threads) noexcept;

/// Tells the core that this is a spin loop.
inline void pause_core() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

/// Whether another thread of this process has waited on the calling thread's core since this thread last did: two
/// that wait for each other sit on one core, and looking keeps the other from running. A few nanoseconds.
bool shares_core() noexcept;

/// Looks up to `looks` times for `ready()`; true as soon as it holds.
template <class Ready>
bool spin_until(Ready ready, int looks) noexcept {
  // The first looks follow each other closely: a pause takes 40 ns or more, half of a round trip between two cores.
  constexpr int kEagerLooks = 32;
  // Enough for the other to come on where nobody else wants the core.
  constexpr int kOffers = 20;
  if (looks == 0) return false;
  for (int i = 0; i < kEagerLooks; ++i)
    if (ready()) return true;
  if (shares_core()) {
    for (int i = 0; i < kOffers; ++i) {
      std::this_thread::yield();
      if (ready()) return true;
    }
  }
  for (int i = kEagerLooks; i < looks; ++i) {
    pause_core();
    if (ready()) return true;
  }
  return false;
}

/// Waits until `word` differs from `old`: spins, yields, then sleeps on it. Returns the new value, with what its writer
/// released. Whoever changes the word calls notify on it.
inline std::uint32_t wait_for_change(const std::atomic<std::uint32_t>& word, std::uint32_t old,
                                     SpinBudget budget) noexcept {
  // acquire throughout: the waiter goes on with what the writer did before.
  std::uint32_t value = old;
  const auto changed = [&] { return (value = word.load(std::memory_order_acquire)) != old; };
  if (spin_until(changed, budget.spins)) return value;
  for (int i = 0; i < budget.yields; ++i) {
    if (changed()) return value;
    std::this_thread::yield();
  }
  while (!changed()) word.wait(old, std::memory_order_acquire);
  return value;
}

}  // namespace tandem
