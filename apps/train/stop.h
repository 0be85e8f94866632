#pragma once

#include <cstdint>

#include "clock.h"
#include "tandem/tandem.h"

namespace train {

/// Whether a signal asks for a stop. One rank sees it first; all must stop at the same place. Collective.
bool stop_is_asked(tandem::Accelerator& accelerator);

/// The same between updates, for which the ranks do not meet each time: a tenth of a second after the signal, or after
/// as many updates as that takes, but no more than kMostUpdates. One a rank.
class StopWatch {
 public:
  static constexpr double kSeconds = 0.1;
  static constexpr std::int64_t kMostUpdates = 32;

  /// An update was made. Collective.
  bool is_asked(tandem::Accelerator& accelerator);

 private:
  std::int64_t updates_until_next();

  std::int64_t left_ = 1, between_ = 1;  // updates until the next look, and since the last
  Clock::time_point looked_ = Clock::now();
};

}  // namespace train
