#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "clock.h"

namespace tandem::io {
class AppendFile;
}

namespace train {

/// What is known about one optimizer update.
struct UpdateMetrics {
  std::int64_t step = 0;   ///< from 1, over all epochs
  std::int64_t epoch = 0;  ///< from 0
  double loss = 0;         ///< mean over the ranks and the accumulation window
  double grad_norm = 0;    ///< 2-norm of the averaged gradient, before clipping; null in the log when infinite or NaN
  double lr = 0;
  double samples_per_second = 0;  ///< of all ranks, since the update before
};

/// How good the trained network is.
struct Verdict {
  std::string sentence;                                 ///< for people
  std::vector<std::pair<std::string, double>> figures;  ///< for the log, which has null for NaN
};

/// What is known at the end.
struct FinalMetrics {
  Verdict verdict{};
  bool judged = false;                  ///< the verdict is one
  std::vector<std::string> left_out{};  ///< why each picture was that cannot be read
  std::string sample{};                 ///< valid UTF-8; empty: none
  double train_seconds = 0;
  double samples_per_second = 0;
  double startup_seconds = 0;
  double peak_rss_mb = 0;
};

/// Writes the metrics as JSON Lines: one object an update, {"eval": …} for each time the network was judged, {"final":
/// …} last. A line is written as soon as its values are there; training never waits for it: what a full disk or a slow
/// reader does not take is kept and tried again with the next one.
class MetricsLog {
 public:
  /// Opens `path`, a named pipe once somebody reads it; an empty path writes nothing. Throws tandem::ConfigError.
  explicit MetricsLog(const std::string& path);
  ~MetricsLog();

  /// Keeps what the file has of the first `steps` updates, and of judgements after at most `judged_at` of them. Throws
  /// tandem::ConfigError.
  void begin(std::int64_t steps, std::int64_t judged_at);

  /// Returns what went wrong; empty: nothing, or nothing new.
  std::string write(const UpdateMetrics& metrics);
  std::string write(std::int64_t step, std::int64_t epoch, const Verdict& verdict);  ///< the same

  /// Waits for a reader until `stopped`. Returns why anything is missing; empty: nothing is.
  std::string finish(const FinalMetrics& metrics, const std::function<bool()>& stopped);

 private:
  std::string put(const std::string& line);

  std::string path_;
  std::unique_ptr<tandem::io::AppendFile> file_;  // null: none
  std::string pending_;                           // lines that are not written yet
  std::string problem_;                           // why; empty: none
  bool ended_ = false;                            // nobody will take anything more
};

/// Measures training time and throughput; evaluation is left out.
class Throughput {
 public:
  void start() { resumed_ = Clock::now(); }

  /// What is paused stays so.
  void pause() {
    elapsed_ = now();
    resumed_.reset();
  }
  void resume() { resumed_ = Clock::now(); }

  /// An update over `samples` of all ranks has ended. Returns the samples a second since the one before.
  double update(std::int64_t samples);

  double train_seconds() const { return elapsed_; }  ///< while paused

  /// From update 21 on, so that first-time costs do not count; over all updates when there are no more than 20.
  double samples_per_second() const;

 private:
  static constexpr std::int64_t kWarmupUpdates = 20;
  double now() const { return elapsed_ + (resumed_ ? seconds_since(*resumed_) : 0); }

  std::optional<Clock::time_point> resumed_;  // nothing: it is paused
  double elapsed_ = 0;
  std::int64_t updates_ = 0, samples_ = 0, warmup_samples_ = 0;
  double last_update_ = 0, warmup_end_ = 0;
};

}  // namespace train
