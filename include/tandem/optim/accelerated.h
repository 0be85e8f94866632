#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

namespace torch::serialize {
class InputArchive;
class OutputArchive;
}  // namespace torch::serialize

namespace tandem::optim {

class Scheduler;
struct Insides;

/// Computes a loss and its gradients, and returns the loss. For optimizers that need them several times a step.
using Closure = std::function<at::Tensor()>;

/// What `prepare` returns for an optimizer: acts only in the micro-batch that closes its accumulation window.
/// The inner optimizer and the accelerator outlive it. Copies share the inner optimizer and the count of updates.
class AcceleratedOptimizer {
 public:
  struct Shared;  ///< what copies share

  /// Accelerator::prepare makes them.
  explicit AcceleratedOptimizer(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  /// Updates the parameters, in the micro-batch that closes the window. With a scaler: unless one of their gradients,
  /// on any rank, is infinite or NaN. Collective then. Throws what GradScaler::step throws, and ConfigError when the
  /// ranks' optimizers list other parameters, for an optimizer that needs a closure, and for gradients that are sums
  /// over items, which no backward(loss_sum, items) has made a mean yet.
  void step();

  /// A step of an optimizer that evaluates the loss itself, as torch::optim::LBFGS does several times a step:
  ///
  ///     auto window = accelerator.accumulate(model);
  ///     optimizer.step([&] {
  ///       optimizer.zero_grad();
  ///       auto loss = loss_of(model(inputs), targets);
  ///       accelerator.backward(loss);
  ///       return loss;
  ///     });
  ///
  /// Each evaluation is reduced, and counts in full, whatever LaunchConfig::gradient_accumulation_steps. The optimizer
  /// gets the mean of the ranks' losses (after backward(loss_sum, items), where the closure returns loss_sum: the mean
  /// over all items), so that all ranks decide alike. Optimizers that need no closure take one too, and call it once.
  ///
  /// Returns the loss of the first evaluation. Collective. Throws ConfigError in a window of several micro-batches (a
  /// closure that goes through several batches has them in one), under fp16, in a step that is recorded, within
  /// join_uneven_inputs, for an accumulate() within the closure, and when the closure's gradients were not reduced
  /// because it did not call Accelerator::backward.
  at::Tensor step(const Closure& closure);

  /// True when the last step changed nothing because a gradient was infinite or NaN. The same on all ranks.
  bool step_was_skipped() const;

  /// Drops the gradients, in the micro-batch that closes the window.
  void zero_grad(bool set_to_none = true);

  /// Updates made so far, without the skipped ones.
  std::int64_t updates() const;

  /// The optimizer that was prepared, for functions that take a torch::optim::Optimizer, as those that set options or
  /// make a scheduler. Its own step() and zero_grad() know of no window, scaler or other rank: call those of this
  /// class.
  torch::optim::Optimizer& inner() const;

  /// The inner optimizer's parameter groups, whose options may be changed between steps, the same on all ranks.
  std::vector<torch::optim::OptimizerParamGroup>& param_groups() const;

 private:
  friend struct Insides;
  std::shared_ptr<Shared> shared_;
};

/// torch::save(optimizer, file) does not compile: all ranks would write the file at the same time.
template <std::same_as<AcceleratedOptimizer> Optimizer>
torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive, const Optimizer&) {
  static_assert(!std::same_as<Optimizer, AcceleratedOptimizer>,
                "torch::save of a prepared optimizer: use accelerator.save_state(directory) on all ranks, or on one "
                "rank torch::save(optimizer.inner(), file)");
  return archive;
}

/// torch::load(optimizer, file) does not compile.
template <std::same_as<AcceleratedOptimizer> Optimizer>
torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, Optimizer&) {
  static_assert(!std::same_as<Optimizer, AcceleratedOptimizer>,
                "torch::load into a prepared optimizer: use accelerator.load_state(directory) on all ranks, or "
                "torch::load(adamw, file) on all ranks before prepare");
  return archive;
}

/// What `prepare` returns for a scheduler. A scheduler by the number of updates advances with every optimizer update,
/// one by a metric with every metric that it is given. The inner scheduler and the accelerator outlive it. Copies share
/// the count.
class AcceleratedScheduler {
 public:
  struct Shared;  ///< what copies share

  /// Accelerator::prepare makes them.
  explicit AcceleratedScheduler(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  /// Advances the schedule, in the micro-batch that closes the window, unless its optimizer has skipped the step.
  /// Throws ConfigError when it goes by a metric.
  void step();

  /// Gives the schedule a metric, which must be the same on all ranks. Acts at once outside of accumulate(), as after
  /// an evaluation; within, when the window closes. A skipped update does not matter to it. Throws ConfigError when
  /// it goes by the number of updates.
  void step(double metric);

  /// Updates, or metrics, that the schedule has advanced by.
  std::int64_t updates() const;

  /// The inner scheduler; null when it is LibTorch's, whose state cannot be had.
  Scheduler* inner() const;

 private:
  friend struct Insides;
  std::shared_ptr<Shared> shared_;
};

}  // namespace tandem::optim
