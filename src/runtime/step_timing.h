// Whether a compiled step is faster called or replayed.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "runtime/rank_context.h"
#include "tandem/runtime/detail/step_graph.h"

namespace tandem {

/// Measures some called and some replayed steps of one rank, each alone on the device, and compares what the slowest
/// ranks took.
class StepTiming {
 public:
  static constexpr std::size_t kSteps = 10;  ///< that are measured of each kind

  /// `context` outlives it.
  StepTiming(const RankContext& context, bool wanted) : context_(context), wanted_(wanted) {}

  /// False when nothing is to be measured, or all has been.
  bool open() const { return wanted_ && !times_; }

  /// Does `step`, and measures it where there are too few of its kind.
  void called(const std::function<void()>& step) { measure(called_, step); }
  void replayed(const std::function<void()>& step) { measure(replayed_, step); }

  /// True when enough replayed steps were measured.
  bool complete() const { return open() && replayed_.size() == kSteps; }

  /// Compares, once it is complete. Collective.
  void conclude();

  /// Begins anew, with the next called step: the step is another now.
  void restart();

  /// After `conclude`.
  const std::optional<StepTimes>& times() const { return times_; }

 private:
  void measure(std::vector<double>& seconds, const std::function<void()>& step);
  double slowest_rank(std::vector<double> seconds) const;

  const RankContext& context_;
  const bool wanted_;
  std::vector<double> called_, replayed_;
  std::optional<StepTimes> times_;
};

}  // namespace tandem
