#pragma once

#include <cstdint>
#include <vector>

#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// Changes an optimizer's learning rates after each update. `step()` is called once an update.
class LRScheduler {
 public:
  virtual ~LRScheduler() = default;
  virtual void step() = 0;
};

/// Options of CosineLR; counts are optimizer updates.
struct CosineLROptions {
  std::int64_t warmup_steps = 0;  ///< updates of linear growth from base / warmup_steps
  std::int64_t total_steps = 0;   ///< updates until the minimum is reached, warm-up included
  double min_factor = 0.0;        ///< the minimum as a part of the base rate
};

/// Linear warm-up, then half a cosine down to `min_factor` of each parameter group's initial rate.
///
/// Update t (from 0) gets base * (t + 1) / warmup while t < warmup, and afterwards
/// base * (min + (1 - min) * (1 + cos(pi * (t - warmup) / (total - warmup))) / 2), where the fraction stops at 1.
/// Source: SGDR, Loshchilov and Hutter, arXiv:1608.03983, eq. 5 without restarts.
class CosineLR final : public LRScheduler {
 public:
  /// `optimizer` outlives the scheduler. Sets the rate of update 0. Throws ConfigError when total_steps is not
  /// above warmup_steps or a value is out of range.
  CosineLR(torch::optim::Optimizer& optimizer, CosineLROptions options);

  void step() override;

 private:
  void apply();

  torch::optim::Optimizer& optimizer_;
  CosineLROptions options_;
  std::vector<double> base_rates_;  // by parameter group
  std::int64_t update_ = 0;
};

}  // namespace tandem::optim
