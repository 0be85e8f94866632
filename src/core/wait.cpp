#include "tandem/core/wait.h"

#include "core/control_group.h"

namespace tandem {

SpinBudget spin_budget(int threads) noexcept {
  // 2,000 pauses are some 30 to 100 µs, the time of a few small operators: ranks that run side by side rarely sleep.
  if (threads <= usable_cores()) return {.spins = 2000, .yields = 20};
  return {.spins = 0, .yields = 4};
}

}  // namespace tandem
