#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "tandem/optim/scheduler.h"

namespace tandem::optim {

/// How values go from one to the next.
enum class AnnealStrategy {
  cos,     ///< half a cosine from one value to the next
  linear,  ///< a straight line
};

/// PyTorch's names and defaults. Lists have one value for all parameter groups, or one each.
struct OneCycleLROptions {
  std::vector<double> max_lr;    ///< above 0; has no default
  std::int64_t total_steps = 0;  ///< updates of the whole cycle; at least 1; has no default
  double pct_start = 0.3;        ///< part of it in which the rate rises; 0 to 1, with three_phase to 0.5
  AnnealStrategy anneal_strategy = AnnealStrategy::cos;  ///< of rate and momentum
  bool cycle_momentum = true;  ///< moves SGD's and RMSprop's momentum, Adam's and AdamW's first beta the other way
  std::vector<double> base_momentum{0.85};  ///< the least, where the rate is highest
  std::vector<double> max_momentum{0.95};   ///< the greatest, where the rate is lowest
  double div_factor = 25.0;                 ///< the first rate is max_lr / div_factor; above 0
  double final_div_factor = 1e4;            ///< the last one is the first / final_div_factor; above 0
  bool three_phase = false;                 ///< down to the first rate as slowly as it rose, and then to the last
};

/// One rise to max_lr and one fall far below the first rate, whatever the optimizer's rates were.
/// Source: Super-Convergence, Smith and Topin, arXiv:1708.07120, as in PyTorch 2.11.
class OneCycleLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = OneCycleLROptions;

  /// Sets rate and momentum of update 0. Throws ConfigError when an option is out of range, or there is no momentum to
  /// cycle. step() throws ConfigError after more than total_steps calls.
  OneCycleLR(torch::optim::Optimizer& optimizer, Options options);

  /// With one greatest rate for all parameter groups, and the updates of the whole cycle. Throws as with Options.
  template <class Number>
  requires std::is_arithmetic_v<Number> OneCycleLR(torch::optim::Optimizer& optimizer, Number max_lr,
                                                   std::int64_t total_steps)
      : OneCycleLR(optimizer, Options{.max_lr = {static_cast<double>(max_lr)}, .total_steps = total_steps}) {}

  /// Adds `max_lr`, `min_lr`, `base_momentum` and `max_momentum`.
  std::map<std::string, double> group_values(std::size_t group) const override;

 private:
  // Where an update lies: in which phase (from 0), and how much of that is behind it (from 0 to 1).
  struct Position {
    std::size_t phase;
    double done;
  };

  Position position() const;
  double anneal(double start, double end, double done) const;
  double lr_of(std::size_t group, double lr) const override;
  double momentum_of(std::size_t group) const;
  void advance() override;
  bool has_own_base() const override { return true; }

  Options options_;
  std::vector<double> phase_ends_;  // the update at which each phase is done; may be fractional
};

}  // namespace tandem::optim
