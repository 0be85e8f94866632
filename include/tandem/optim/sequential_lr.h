#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tandem/optim/scheduler.h"

namespace tandem::optim {

/// Makes a scheduler for an optimizer.
using SchedulerFactory = std::function<std::unique_ptr<LRScheduler>(torch::optim::Optimizer&)>;

/// A scheduler to be made later: `stage<StepLR>({.step_size = 30})`.
template <class Scheduler>
SchedulerFactory stage(typename Scheduler::Options options) {
  return [options = std::move(options)](torch::optim::Optimizer& optimizer) {
    return std::make_unique<Scheduler>(optimizer, options);
  };
}

/// Options of a SequentialLR; with_warmup() makes some.
struct SequentialLROptions {
  std::vector<SchedulerFactory> schedulers;  ///< at least one
  std::vector<std::int64_t> milestones;      ///< the update at which each but the first begins; above 0, rising
};

/// One schedule after the other. Each begins with its update 0, at the optimizer's first rates.
///
///     optim::SequentialLR schedule(adamw, {.schedulers = {stage<ConstantLR>({.factor = 0.1, .total_iters = 10}),
///                                                         stage<ExponentialLR>({.gamma = 0.99})},
///                                          .milestones = {10}});
class SequentialLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = SequentialLROptions;

  /// Makes the schedulers, and sets the rates of update 0. Throws ConfigError when the milestones do not fit, and what
  /// the schedulers throw.
  SequentialLR(torch::optim::Optimizer& optimizer, Options options);

  /// `last_epoch`, `_last_lr`, the schedulers' states and the course.
  SchedulerState state() const override;

  /// Those of all its schedulers.
  std::map<std::string, double> group_values(std::size_t group) const override;

 private:
  std::size_t current() const;
  double lr_of(std::size_t group, double lr) const override;
  void advance() override;
  void take_base(const SchedulerState& state) override;
  bool has_own_base() const override;
  void rewind() override;

  std::vector<std::unique_ptr<LRScheduler>> schedulers_;
  std::vector<std::int64_t> begins_;  // by scheduler, the update that is its first
};

/// `steps` updates of linear growth (base / steps, 2 base / steps, …), then `next` from its update 0 at update `steps`.
/// With 0 steps `next` alone. Throws ConfigError when `steps` is negative.
///
///     optim::SequentialLR schedule(adamw, with_warmup(50, stage<CosineAnnealingLR>({.T_max = 450})));
SequentialLROptions with_warmup(std::int64_t steps, SchedulerFactory next);

}  // namespace tandem::optim
