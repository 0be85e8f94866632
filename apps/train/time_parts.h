#pragma once

#include <array>
#include <chrono>

#include "clock.h"
#include "tandem/trace/range.h"

namespace train {

/// Seconds of a rank's thread by trace::Kind. Kind::other has also what was in no range, so that they add up.
using TimeParts = std::array<double, tandem::trace::kKinds>;

/// Tells where the time of the thread went since one looked last. The recorder outlives it.
class TimePartsSince {
 public:
  explicit TimePartsSince(const tandem::trace::Recorder& recorder) : recorder_(recorder) { take(); }

  /// Of the time since the last call.
  TimeParts take();

 private:
  const tandem::trace::Recorder& recorder_;
  std::array<std::chrono::nanoseconds, tandem::trace::kKinds> seen_{};
  Clock::time_point at_{};
};

}  // namespace train
