#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "tandem/optim/scheduler.h"

/// \file
/// PyTorch's schedulers by the number of updates. Options have PyTorch's names and defaults, and may be given one after
/// the other in PyTorch's order as well: `StepLR(adamw, {.step_size = 30})` is `StepLR(adamw, 30)`. Counts are calls of
/// step(). Constructors set the rate of update 0 and throw ConfigError when an option is out of range. Formulas and
/// their order of operations: PyTorch 2.11, torch/optim/lr_scheduler.py, so that the numbers agree.
namespace tandem::optim {

/// A number, for options that are given one after the other.
template <class T>
concept NumberOption = std::is_arithmetic_v<T>;

/// Options of a ConstantLR.
struct ConstantLROptions {
  double factor = 1.0 / 3;       ///< above 0, at most 1
  std::int64_t total_iters = 5;  ///< at least 1
};

/// base * factor until update total_iters, then base.
class ConstantLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = ConstantLROptions;

  /// Sets the rates of update 0. Throws ConfigError when an option is out of range.
  explicit ConstantLR(torch::optim::Optimizer& optimizer, Options options = {});

  /// With the options in PyTorch's order. Throws ConfigError when one is out of range.
  template <NumberOption Number>
  ConstantLR(torch::optim::Optimizer& optimizer, Number factor, std::int64_t total_iters = 5)
      : ConstantLR(optimizer, Options{.factor = static_cast<double>(factor), .total_iters = total_iters}) {}

 private:
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

/// Options of a StepLR.
struct StepLROptions {
  std::int64_t step_size = 0;  ///< at least 1; has no default
  double gamma = 0.1;          ///< above 0
};

/// Multiplies the rate by gamma every step_size updates.
class StepLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = StepLROptions;

  /// Sets the rates of update 0. Throws ConfigError when an option is out of range.
  StepLR(torch::optim::Optimizer& optimizer, Options options);

  /// With the options in PyTorch's order. Throws ConfigError when one is out of range.
  template <std::integral Integer>
  StepLR(torch::optim::Optimizer& optimizer, Integer step_size, double gamma = 0.1)
      : StepLR(optimizer, Options{.step_size = static_cast<std::int64_t>(step_size), .gamma = gamma}) {}

 private:
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

/// Options of a MultiStepLR.
struct MultiStepLROptions {
  std::vector<std::int64_t> milestones;  ///< at least 0 each, in any order; one that is there twice counts twice
  double gamma = 0.1;                    ///< above 0
};

/// Multiplies the rate by gamma at each milestone.
class MultiStepLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = MultiStepLROptions;

  /// Sets the rates of update 0. Throws ConfigError when an option is out of range.
  MultiStepLR(torch::optim::Optimizer& optimizer, Options options);

  /// With the options in PyTorch's order. Throws ConfigError when one is out of range.
  MultiStepLR(torch::optim::Optimizer& optimizer, std::vector<std::int64_t> milestones, double gamma)
      : MultiStepLR(optimizer, Options{.milestones = std::move(milestones), .gamma = gamma}) {}

  /// With the milestones of any integers. Throws ConfigError when an option is out of range.
  template <std::integral Integer>
  MultiStepLR(torch::optim::Optimizer& optimizer, const std::vector<Integer>& milestones, double gamma = 0.1)
      : MultiStepLR(optimizer, Options{.milestones = {milestones.begin(), milestones.end()}, .gamma = gamma}) {}

 private:
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

/// Options of an ExponentialLR.
struct ExponentialLROptions {
  double gamma = 0.0;  ///< above 0; has no default
};

/// base * gamma^t.
class ExponentialLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = ExponentialLROptions;

  /// Sets the rates of update 0. Throws ConfigError when an option is out of range.
  ExponentialLR(torch::optim::Optimizer& optimizer, Options options);

  /// With the options in PyTorch's order. Throws ConfigError when one is out of range.
  template <NumberOption Number>
  ExponentialLR(torch::optim::Optimizer& optimizer, Number gamma)
      : ExponentialLR(optimizer, Options{.gamma = static_cast<double>(gamma)}) {}

 private:
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

/// Options of a LinearLR.
struct LinearLROptions {
  double start_factor = 1.0 / 3;  ///< above 0, at most 1
  double end_factor = 1.0;        ///< 0 to 1
  std::int64_t total_iters = 5;   ///< at least 1
};

/// base * start_factor, on a straight line to base * end_factor at update total_iters, where it stays.
class LinearLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = LinearLROptions;

  /// Sets the rates of update 0. Throws ConfigError when an option is out of range.
  explicit LinearLR(torch::optim::Optimizer& optimizer, Options options = {});

  /// With the options in PyTorch's order. Throws ConfigError when one is out of range.
  template <NumberOption Number>
  LinearLR(torch::optim::Optimizer& optimizer, Number start_factor, double end_factor = 1.0,
           std::int64_t total_iters = 5)
      : LinearLR(optimizer, Options{.start_factor = static_cast<double>(start_factor),
                                    .end_factor = end_factor,
                                    .total_iters = total_iters}) {}

 private:
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

/// Options of a PolynomialLR.
struct PolynomialLROptions {
  std::int64_t total_iters = 5;  ///< at least 1
  double power = 1.0;            ///< above 0
};

/// base * (1 - t / total_iters)^power, 0 from update total_iters on.
class PolynomialLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = PolynomialLROptions;

  /// Sets the rates of update 0. Throws ConfigError when an option is out of range.
  explicit PolynomialLR(torch::optim::Optimizer& optimizer, Options options = {});

  /// With the options in PyTorch's order. Throws ConfigError when one is out of range.
  template <std::integral Integer>
  PolynomialLR(torch::optim::Optimizer& optimizer, Integer total_iters, double power = 1.0)
      : PolynomialLR(optimizer, Options{.total_iters = static_cast<std::int64_t>(total_iters), .power = power}) {}

 private:
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

/// Options of a CosineAnnealingLR.
struct CosineAnnealingLROptions {
  std::int64_t T_max = 0;  ///< updates of half a cosine; at least 1; has no default
  double eta_min = 0.0;    ///< the least rate; at least 0
};

/// From base to eta_min at update T_max on half a cosine, and back on the next half.
/// Source: SGDR, Loshchilov and Hutter, arXiv:1608.03983, eq. 5 without restarts.
class CosineAnnealingLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = CosineAnnealingLROptions;

  /// Sets the rates of update 0. Throws ConfigError when an option is out of range.
  CosineAnnealingLR(torch::optim::Optimizer& optimizer, Options options);

  /// With the options in PyTorch's order. Throws ConfigError when one is out of range.
  template <std::integral Integer>
  CosineAnnealingLR(torch::optim::Optimizer& optimizer, Integer T_max, double eta_min = 0.0)
      : CosineAnnealingLR(optimizer, Options{.T_max = static_cast<std::int64_t>(T_max), .eta_min = eta_min}) {}

 private:
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

/// Options of a CosineAnnealingWarmRestarts.
struct CosineAnnealingWarmRestartsOptions {
  std::int64_t T_0 = 0;     ///< updates of the first cycle; at least 1; has no default
  std::int64_t T_mult = 1;  ///< how many times as long each cycle is as the one before; at least 1
  double eta_min = 0.0;     ///< the rate that a cycle falls towards; at least 0
};

/// Half a cosine from base towards eta_min, again and again. Source: as CosineAnnealingLR, with restarts.
class CosineAnnealingWarmRestarts final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = CosineAnnealingWarmRestartsOptions;

  /// Sets the rates of update 0. Throws ConfigError when an option is out of range.
  CosineAnnealingWarmRestarts(torch::optim::Optimizer& optimizer, Options options);

  /// With the options in PyTorch's order. Throws ConfigError when one is out of range.
  template <std::integral Integer>
  CosineAnnealingWarmRestarts(torch::optim::Optimizer& optimizer, Integer T_0, std::int64_t T_mult = 1,
                              double eta_min = 0.0)
      : CosineAnnealingWarmRestarts(
            optimizer, Options{.T_0 = static_cast<std::int64_t>(T_0), .T_mult = T_mult, .eta_min = eta_min}) {}

  /// Adds `T_cur` and `T_i`, which follow from last_epoch, for PyTorch.
  SchedulerState state() const override;

 private:
  struct Cycle {
    std::int64_t done, length;  // updates
  };
  Cycle cycle() const;
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

/// Options of a LambdaLR.
struct LambdaLROptions {
  std::vector<std::function<double(std::int64_t)>> lr_lambda;  ///< one for all parameter groups, or one each
};

/// base * lr_lambda(t).
class LambdaLR final : public LRScheduler {
 public:
  /// The options' type, for `stage`.
  using Options = LambdaLROptions;

  /// Sets the rates of update 0. Throws ConfigError when a function is empty or their number does not fit.
  LambdaLR(torch::optim::Optimizer& optimizer, Options options);

  /// With one function of the number of updates for all parameter groups. Throws ConfigError when it is empty.
  template <class Function>
  requires std::is_invocable_r_v<double, Function&, std::int64_t> LambdaLR(torch::optim::Optimizer& optimizer,
                                                                           Function lr_lambda)
      : LambdaLR(optimizer, Options{.lr_lambda = {std::move(lr_lambda)}}) {}

 private:
  double lr_of(std::size_t group, double lr) const override;
  Options options_;
};

}  // namespace tandem::optim
