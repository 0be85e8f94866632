#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "clock.h"
#include "time_parts.h"

namespace train {

/// How fast training goes, by the latest seconds: what is some seconds older counts a third.
class Pace {
 public:
  /// Of `seconds`, the thread waited `data_wait` for data.
  void add(double seconds, std::int64_t steps, std::int64_t samples, double data_wait);

  double samples_per_second() const { return seconds_ > 0 ? samples_ / seconds_ : 0; }
  double seconds_per_step() const { return steps_ > 0 ? seconds_ / steps_ : 0; }
  double data_wait() const { return seconds_ > 0 ? data_wait_ / seconds_ : 0; }  ///< share of the time

 private:
  double seconds_ = 0, steps_ = 0, samples_ = 0, data_wait_ = 0;
};

/// One line: "epoch 1  step 12/469  loss 0.3000  4500 samples/s  26 s left", and how long is waited for data, if that
/// is worth knowing. Epochs from 0.
std::string progress_line(const Pace& pace, std::int64_t epoch, std::int64_t step, std::int64_t total_steps,
                          double loss);

/// Whether somebody takes what is written to a stream now. Training waits for nobody who does not read what it says,
/// such as a pager or a terminal that was stopped.
bool is_read(int stream);

/// Shows how training goes, on standard error: a live line on a terminal, a line now and then elsewhere.
class Progress {
 public:
  /// `total_steps`: updates in all, to tell the time left. `recorder` hears of this thread's ranges; null: what is
  /// waited for is not known. It outlives the object.
  Progress(bool enabled, std::int64_t total_steps, const tandem::trace::Recorder* recorder);

  /// An update over `samples` of all ranks has ended.
  void count(std::int64_t samples);

  /// True when it is time to show something.
  bool due() const;

  void show(std::int64_t epoch, std::int64_t step, double loss);

  /// Removes the live line, so that something else can be printed.
  void clear();

 private:
  bool enabled_;
  bool terminal_;
  std::int64_t total_steps_;
  std::optional<TimePartsSince> parts_;
  Pace pace_;
  std::int64_t steps_ = 0, samples_ = 0;  // since the last line
  Clock::time_point paced_ = Clock::now();
  Clock::time_point last_{};
  bool shown_ = false;
};

}  // namespace train
