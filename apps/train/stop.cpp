#include "stop.h"

#include <algorithm>
#include <utility>

#include "common/interrupt.h"

namespace train {

bool stop_is_asked(tandem::Accelerator& accelerator) {
  if (apps::interrupted()) accelerator.set_trigger();
  return accelerator.check_trigger();
}

bool StopWatch::is_asked(tandem::Accelerator& accelerator) {
  if (accelerator.world_size() == 1) return apps::interrupted();
  if (--left_ > 0) return false;
  // The ranks agree on when to look again by the fewest updates that one of them wants; 0: it has seen a signal.
  const std::int64_t wanted = apps::interrupted() ? 0 : updates_until_next();
  left_ = between_ = accelerator.reduce(wanted, tandem::comm::ReduceOp::min);
  return left_ == 0;
}

std::int64_t StopWatch::updates_until_next() {
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - std::exchange(looked_, now)).count();
  const double fit = static_cast<double>(between_) * kSeconds / std::max(seconds, 1e-9);
  return static_cast<std::int64_t>(std::clamp(fit, 1.0, static_cast<double>(kMostUpdates)));
}

}  // namespace train
