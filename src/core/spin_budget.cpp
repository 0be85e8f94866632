#include "core/spin_budget.h"

#include <sched.h>

#include <array>
#include <atomic>
#include <cstddef>

#include "core/cgroup_limit.h"

namespace tandem {
namespace {

// Who waited last on each core: of machines with more cores than this some share a place, which costs an offer more.
struct alignas(64) LastWaiter {
  std::atomic<const void*> thread{nullptr};
};
constinit std::array<LastWaiter, 512> last_waiters;

}  // namespace

bool shares_core() noexcept {
  thread_local const char self{};
  const int core = sched_getcpu();
  if (core < 0) return false;
  std::atomic<const void*>& last = last_waiters[static_cast<std::size_t>(core) % last_waiters.size()].thread;
  // relaxed: a hint, nothing is handed over.
  const void* before = last.load(std::memory_order_relaxed);
  if (before == &self) return false;
  last.store(&self, std::memory_order_relaxed);
  return before != nullptr;
}

SpinBudget spin_budget(int threads) noexcept {
  // 2,000 pauses are some 30 to 100 µs, the time of a few small operators: ranks that run side by side rarely sleep.
  if (threads <= usable_cores()) return {.spins = 2000, .yields = 20};
  return {.spins = 0, .yields = 4};
}

}  // namespace tandem
