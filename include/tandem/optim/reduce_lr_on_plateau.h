#pragma once

#include <cstdint>
#include <vector>

#include "tandem/optim/scheduler.h"

namespace tandem::optim {

/// Which metric is better.
enum class PlateauMode {
  min,  ///< a lower metric is better
  max,  ///< a higher metric is better
};

/// What a threshold is relative to.
enum class ThresholdMode {
  rel,  ///< better is below best * (1 - threshold), or above best * (1 + threshold)
  abs,  ///< better is below best - threshold, or above best + threshold
};

/// PyTorch's names and defaults; counts are calls of step().
struct ReduceLROnPlateauOptions {
  PlateauMode mode = PlateauMode::min;                ///< which metric is better
  double factor = 0.1;                                ///< of a reduction; at least 0, below 1
  std::int64_t patience = 10;                         ///< calls without a better metric that are let pass
  double threshold = 1e-4;                            ///< at least 0
  ThresholdMode threshold_mode = ThresholdMode::rel;  ///< what `threshold` means
  std::int64_t cooldown = 0;                          ///< calls after a reduction of which a bad metric does not count
  std::vector<double> min_lr{0.0};                    ///< one for all parameter groups, or one each; at least 0
  double eps = 1e-8;                                  ///< a reduction by less is left out; at least 0
};

/// Multiplies the rates by a factor when a metric has not got better for a while. Source: PyTorch 2.11.
///
/// All ranks must pass the same metric, or their rates differ from then on: reduce or gather it first.
class ReduceLROnPlateau final : public Scheduler {
 public:
  /// The options' type, named as in the other schedulers.
  using Options = ReduceLROnPlateauOptions;

  /// Throws ConfigError when an option is out of range.
  explicit ReduceLROnPlateau(torch::optim::Optimizer& optimizer, Options options = {});

  /// With the first options in PyTorch's order. Throws ConfigError when one is out of range.
  ReduceLROnPlateau(torch::optim::Optimizer& optimizer, PlateauMode mode, double factor = 0.1,
                    std::int64_t patience = 10)
      : ReduceLROnPlateau(optimizer, Options{.mode = mode, .factor = factor, .patience = patience}) {}

  /// Takes a new value of the metric; NaN is never better. Throws what last_lr throws.
  void step(double metric);

  /// Adds `best`, `num_bad_epochs` and `cooldown_counter`.
  SchedulerState state() const override;

  /// Rates are those of `state`: they follow from its metrics, not from the length of a training.
  void load_state(const SchedulerState& state) override;

 private:
  bool is_better(double metric) const;
  void reduce();

  Options options_;
  std::vector<double> first_lrs_;  // when it was made
  double best_;
  std::int64_t num_bad_epochs_ = 0, cooldown_counter_ = 0;
};

}  // namespace tandem::optim
