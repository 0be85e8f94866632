#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "clock.h"
#include "common/interrupt.h"
#include "tandem/tandem.h"

namespace train {

/// Whether a signal asks for a stop. One rank sees it first; all must stop at the same place. Collective.
inline bool stop_is_asked(tandem::Accelerator& accelerator) {
  if (apps::interrupted()) accelerator.set_trigger();
  return accelerator.check_trigger();
}

/// The same between updates, for which the ranks do not meet each time: a tenth of a second after the signal, or after
/// as many updates as that takes, but no more than kMostUpdates. One a rank.
class StopWatch {
 public:
  static constexpr double kSeconds = 0.1;
  static constexpr std::int64_t kMostUpdates = 32;

  /// An update was made. Collective.
  bool is_asked(tandem::Accelerator& accelerator) {
    if (accelerator.world_size() == 1) return apps::interrupted();
    if (--left_ > 0) return false;
    // The ranks agree on when to look again by the fewest updates that one of them wants; 0: it has seen a signal.
    const std::int64_t wanted = apps::interrupted() ? 0 : updates_until_next();
    left_ = between_ = accelerator.reduce(wanted, tandem::comm::ReduceOp::min);
    return left_ == 0;
  }

 private:
  std::int64_t updates_until_next() {
    const auto now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - std::exchange(looked_, now)).count();
    const double fit = static_cast<double>(between_) * kSeconds / std::max(seconds, 1e-9);
    return std::clamp(static_cast<std::int64_t>(std::min(fit, 1e6)), std::int64_t{1}, kMostUpdates);
  }

  std::int64_t left_ = 1, between_ = 1;  // updates until the next look, and since the last
  Clock::time_point looked_ = Clock::now();
};

}  // namespace train
