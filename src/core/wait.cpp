#include "tandem/core/wait.h"

#include <sched.h>

namespace tandem {

SpinBudget spin_budget(int threads) noexcept {
  cpu_set_t allowed;
  const int cores = sched_getaffinity(0, sizeof allowed, &allowed) == 0
                        ? CPU_COUNT(&allowed)
                        : static_cast<int>(std::thread::hardware_concurrency());
  // 2,000 pauses are some 30 to 100 µs, the time of a few small operators: ranks that run side by side rarely sleep.
  if (threads <= cores) return {.spins = 2000, .yields = 20};
  return {.spins = 0, .yields = 4};
}

}  // namespace tandem
