#pragma once

#include <cstdint>
#include <string>

#include "clock.h"

namespace train {

/// Shows how training goes, on standard error: a live line on a terminal, a line now and then elsewhere.
class Progress {
 public:
  /// `total_steps`: updates in all, to tell the time left.
  Progress(bool enabled, std::int64_t total_steps);

  /// True when it is time to show something.
  bool due() const;

  void show(std::int64_t epoch, std::int64_t step, double loss, double samples_per_second);

  /// Removes the live line, so that something else can be printed.
  void clear();

 private:
  bool enabled_;
  bool terminal_;
  std::int64_t total_steps_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_{};
  bool shown_ = false;
};

}  // namespace train
