#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace tandem {

/// How long a thread tries before it sleeps.
struct SpinBudget {
  int spins;                                           ///< looks with a pause between them
  int yields;                                          ///< looks after which the core is offered to another thread
  bool operator==(const SpinBudget&) const = default;  ///< all alike
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

/// Looks `looks` times for `ready()`, without touching the kernel; true as soon as it holds.
template <class Ready>
bool spin_until(Ready ready, int looks) noexcept {
  // The first looks follow each other closely: a pause takes 40 ns or more, half of a round trip between two cores.
  constexpr int kEagerLooks = 32;
  for (int i = 0; i < looks; ++i) {
    if (ready()) return true;
    if (i >= kEagerLooks) pause_core();
  }
  return false;
}

/// The waits of one thread at one place, up to the moment when it has to sleep: looks, then offers its core between
/// looks, and learns from how that goes.
///
/// A machine is not ours alone. When somebody else wants this thread's core, be it who is waited for or another
/// program, spinning is in the way, and the next waits sleep at once. The kernel knows: it counts how often a thread
/// has lost its core, and who offers a core that nobody wants does not lose it. One wait of kTryEach asks it again, and
/// spinning is back when the core was free. Where nobody wants the core, but spinning has not helped in kFailures waits
/// in a row, one wait of kTryEach tries it.
class AdaptiveSpin {
 public:
  static constexpr int kFailures = 16;  ///< waits in a row that had to sleep before spinning stops
  static constexpr int kTryEach = 64;   ///< of so many waits one tries what has stopped

  /// Never spins.
  AdaptiveSpin() noexcept = default;

  /// Waits with `most` while that pays.
  explicit AdaptiveSpin(SpinBudget most) noexcept : most_(most) {}

  /// Looks for `ready()`; true as soon as it holds, false when it is time to sleep.
  template <class Ready>
  bool until(Ready ready) noexcept {
    const SpinBudget budget = next();
    if (spin_until(ready, budget.spins)) {
      failures_ = 0;
      return true;
    }
    if (ready()) return true;  // without having offered the core
    const bool asks = asks_next();
    const long lost = asks ? cores_lost() : 0;
    const bool found = yield_until(ready, budget.yields);
    note(found, asks ? cores_lost() != lost : core_wanted_);
    return found;
  }

  /// What the next wait may spend.
  SpinBudget next() const noexcept;

  /// Whether the next wait asks the kernel if its core is wanted, which takes a third of a microsecond.
  bool asks_next() const noexcept;

  /// Notes how a wait went in which spinning did not help: whether it `found` before it had to sleep what it waited
  /// for, and whether somebody else ran on the core that it offered.
  void note(bool found, bool core_wanted) noexcept;

 private:
  // Times that another thread has run although this one wanted to go on; 0 where the kernel does not tell.
  static long cores_lost() noexcept;

  template <class Ready>
  static bool yield_until(Ready ready, int yields) noexcept {
    for (int i = 0; i < yields; ++i) {
      std::this_thread::yield();
      if (ready()) return true;
    }
    return false;
  }

  SpinBudget most_{.spins = 0, .yields = 0};
  bool core_wanted_ = false;
  int failures_ = 0;    // waits in a row that had to sleep although nobody wanted the core
  unsigned waits_ = 0;  // in which looking alone did not help
};

/// Waits until `word` differs from `old`: spins, yields, then sleeps on it. Returns the new value, with what its writer
/// released. Whoever changes the word calls notify on it.
inline std::uint32_t wait_for_change(const std::atomic<std::uint32_t>& word, std::uint32_t old,
                                     AdaptiveSpin& spin) noexcept {
  // acquire throughout: the waiter goes on with what the writer did before.
  std::uint32_t value = old;
  const auto changed = [&] { return (value = word.load(std::memory_order_acquire)) != old; };
  if (spin.until(changed)) return value;
  while (!changed()) word.wait(old, std::memory_order_acquire);
  return value;
}

}  // namespace tandem
