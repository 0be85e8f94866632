#include "tandem/core/wait.h"

#include <sched.h>
#include <sys/resource.h>

#include <algorithm>

namespace tandem {
namespace {

// Where there are more threads than cores: the next one may be the one that is waited for, or wake it.
constexpr int kFewYields = 4;

}  // namespace

SpinBudget spin_budget(int threads) noexcept {
  cpu_set_t allowed;
  const int cores = sched_getaffinity(0, sizeof allowed, &allowed) == 0
                        ? CPU_COUNT(&allowed)
                        : static_cast<int>(std::thread::hardware_concurrency());
  // 2,000 pauses are some 30 to 100 µs, the time of a few small operators: ranks that run side by side rarely sleep.
  if (threads <= cores) return {.spins = 2000, .yields = 20};
  return {.spins = 0, .yields = kFewYields};
}

SpinBudget AdaptiveSpin::next() const noexcept {
  // Whoever yields to another program gets the core back when that has used up its time, some milliseconds later;
  // whoever sleeps gets it soon after being woken.
  if (core_wanted_) return {.spins = 0, .yields = asks_next() ? kFewYields : 0};
  if (failures_ >= kFailures && waits_ % kTryEach != 0) return {.spins = 0, .yields = most_.yields};
  return most_;
}

bool AdaptiveSpin::asks_next() const noexcept { return most_.spins > 0 && (!core_wanted_ || waits_ % kTryEach == 0); }

void AdaptiveSpin::note(bool found, bool core_wanted) noexcept {
  waits_ += 1;
  core_wanted_ = core_wanted;
  failures_ = found || core_wanted ? 0 : std::min(failures_ + 1, kFailures);
}

long AdaptiveSpin::cores_lost() noexcept {
  rusage usage;
  // It counts those who yield to another thread as having lost their core.
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
}

}  // namespace tandem
