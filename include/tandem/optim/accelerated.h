#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <torch/optim/optimizer.h>
#include <torch/optim/schedulers/lr_scheduler.h>
#include <torch/optim/schedulers/reduce_on_plateau_scheduler.h>

#include "nn/accumulation_window.h"
#include "tandem/core/cancel_token.h"
#include "tandem/core/error.h"
#include "tandem/nn/recording.h"
#include "tandem/optim/fused_step.h"
#include "tandem/optim/grad_scaler.h"
#include "tandem/optim/optimizer_class.h"
#include "tandem/optim/reduce_lr_on_plateau.h"
#include "tandem/optim/scheduler.h"
#include "tandem/optim/sharded_optimizer.h"
#include "tandem/trace/range.h"

namespace torch::serialize {
class InputArchive;
class OutputArchive;
}  // namespace torch::serialize

namespace tandem::optim {

/// Refers to a wrapper for as long as a copy of it lives elsewhere.
template <class Wrapper>
class Observer {
 public:
  /// Refers to what `wrapper` and its copies share.
  explicit Observer(const Wrapper& wrapper) : shared_(wrapper.shared_) {}

  /// A copy of the wrapper; nothing when no copy is left.
  std::optional<Wrapper> lock() const {
    auto shared = shared_.lock();
    return shared ? std::optional(Wrapper(std::move(shared))) : std::nullopt;
  }

 private:
  std::weak_ptr<typename Wrapper::Shared> shared_;
};

/// Computes a loss and its gradients, and returns the loss. For optimizers that need them several times a step.
using Closure = std::function<at::Tensor()>;

/// Calls `step` with what evaluates `closure` as all ranks have to: gradients and loss of all of them.
using ClosureSteps = std::function<void(const Closure& closure, const std::function<void(const Closure&)>& step)>;

/// What `prepare` returns for an optimizer: acts only in the micro-batch that closes its accumulation window.
/// The inner optimizer, the rank's state and its scaler outlive it. Copies share the inner optimizer and the count of
/// updates.
class AcceleratedOptimizer {
 public:
  /// `fused`: a FusedStep updates the parameters where it can, instead of inner.step(). `scaler` has scaled the
  /// gradients; null: they are as they are. `sharded` divides the updates over the ranks; null: each makes all.
  /// `closure_steps` makes steps with a closure; empty: closures are called as they are. `its_class` is what is known
  /// of the class of `inner`. `updated` is called after each update.
  AcceleratedOptimizer(torch::optim::Optimizer& inner, const nn::AccumulationWindow& state, const CancelToken& token,
                       bool fused, GradScaler* scaler = nullptr, std::unique_ptr<ShardedOptimizer> sharded = nullptr,
                       ClosureSteps closure_steps = {}, OptimizerClass its_class = {},
                       std::function<void()> updated = {})
      : shared_(std::make_shared<Shared>(
            Shared{inner, state, token, scaler, 0, false, fused ? std::optional(FusedStep(inner)) : std::nullopt,
                   std::move(sharded), std::move(closure_steps), its_class, std::move(updated)})) {}

  /// Updates the parameters, in the micro-batch that closes the window. With a scaler: unless one of their gradients,
  /// on any rank, is infinite or NaN. Collective then. Throws what GradScaler::step and ShardedOptimizer::step throw,
  /// and ConfigError for an optimizer that needs a closure and for gradients that are sums over items, which no
  /// backward(loss_sum, items) has made a mean yet.
  void step() {
    shared_->token.check();
    if (!shared_->state.acts()) return;
    check_plain_step();
    const trace::Range range(trace::Event::optimizer);
    if (nn::Recording* recording = shared_->state.records()) return record_step(*recording);
    if (shared_->scaler)
      shared_->skipped = !shared_->scaler->step(shared_->inner, [this] { update(); });
    else
      update();
    if (shared_->skipped) return;
    shared_->updates += 1;
    if (shared_->updated) shared_->updated();
  }

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
  bool step_was_skipped() const { return shared_->skipped; }

  /// Drops the gradients, in the micro-batch that closes the window.
  void zero_grad(bool set_to_none = true) {
    if (!shared_->state.acts()) return;
    shared_->inner.zero_grad(set_to_none);
    if (shared_->scaler) shared_->scaler->gradients_dropped(shared_->inner);
  }

  /// Updates made so far, without the skipped ones.
  std::int64_t updates() const { return shared_->updates; }

  /// Takes over the number of updates, when the inner optimizer got another one's state.
  void set_updates(std::int64_t updates, bool last_step_was_skipped = false) {
    shared_->updates = updates;
    shared_->skipped = last_step_was_skipped;
  }

  /// The optimizer that was prepared, for functions that take a torch::optim::Optimizer, as those that set options or
  /// make a scheduler. Its own step() and zero_grad() know of no window, scaler or other rank: call those of this
  /// class.
  torch::optim::Optimizer& inner() const { return shared_->inner; }

  /// The inner optimizer's parameter groups, whose options may be changed between steps, the same on all ranks.
  std::vector<torch::optim::OptimizerParamGroup>& param_groups() const { return shared_->inner.param_groups(); }

  /// What was known of its class when it was prepared.
  const OptimizerClass& its_class() const { return shared_->its_class; }

  /// How the update is divided over the ranks; null when it is not.
  ShardedOptimizer* sharded() const { return shared_->sharded.get(); }

 private:
  struct Shared {
    torch::optim::Optimizer& inner;
    const nn::AccumulationWindow& state;
    const CancelToken& token;
    GradScaler* scaler;
    std::int64_t updates;
    bool skipped;
    std::optional<FusedStep> fused_step;
    std::unique_ptr<ShardedOptimizer> sharded;
    ClosureSteps closure_steps;
    OptimizerClass its_class;
    std::function<void()> updated;
  };

  void check_plain_step() const;
  void check_closure_step(const Closure& closure) const;

  void record_step(nn::Recording& recording) {
    if (!shared_->fused_step || !shared_->fused_step->step(&recording))
      throw ConfigError(
          "its optimizer has no step that can be recorded; those of SGD, Adam and AdamW have (see FusedStep)");
    recording.at_each_replay({.after = [shared = shared_] { shared->updates += 1; }});
  }

  void update() {
    // Also where this rank's part of the update could be fused and others' could not.
    const bool fused = shared_->fused_step && shared_->fused_step->suits_all();
    divided([this, fused] {
      if (fused)
        shared_->fused_step->step(shared_->state.recording());
      else
        shared_->inner.step();
    });
  }

  template <class Update>
  void divided(const Update& update) {
    if (shared_->sharded)
      shared_->sharded->step(update);
    else
      update();
  }

  friend class Observer<AcceleratedOptimizer>;
  explicit AcceleratedOptimizer(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

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

/// A schedule by the number of updates, ours or LibTorch's.
template <class T>
concept UpdateScheduler = std::derived_from<T, LRScheduler> || std::derived_from<T, torch::optim::LRScheduler>;

/// A schedule by a metric, ours or LibTorch's (which takes it as a float).
template <class T>
concept MetricScheduler =
    std::derived_from<T, ReduceLROnPlateau> || std::derived_from<T, torch::optim::ReduceLROnPlateauScheduler>;

/// What `prepare` returns for a scheduler: one by the number of updates advances once an optimizer update, one by a
/// metric with each metric. The inner scheduler and the rank's state outlive it. Copies share the count.
class AcceleratedScheduler {
 public:
  /// `inner` is stepped `steps_per_update` times an update. `skipped` tells whether the last step of its optimizer was
  /// none; empty: never.
  template <UpdateScheduler Inner>
  AcceleratedScheduler(Inner& inner, const nn::AccumulationWindow& state, int steps_per_update,
                       std::function<bool()> skipped = {})
      : shared_(std::make_shared<Shared>(
            Shared{Step([&inner] { inner.step(); }), state, steps_per_update, 0, std::move(skipped), ours(inner)})) {}

  /// `inner` is stepped once a metric, whatever `steps_per_update`.
  template <MetricScheduler Inner>
  AcceleratedScheduler(Inner& inner, const nn::AccumulationWindow& state, int steps_per_update)
      : shared_(std::make_shared<Shared>(Shared{MetricStep([&inner](double metric) { inner.step(metric); }),
                                                state,
                                                steps_per_update,
                                                0,
                                                {},
                                                ours(inner)})) {}

  /// Advances the schedule, in the micro-batch that closes the window, unless its optimizer has skipped the step.
  /// Throws ConfigError when it goes by a metric.
  void step() {
    require<Step>("it goes by a metric; use step(metric)");
    if (nn::Recording* recording = shared_->state.records())
      return recording->at_each_replay({.after = [same = *this]() mutable { same.step(); }});
    if (!shared_->state.acts() || (shared_->skipped && shared_->skipped())) return;
    catch_up(updates() + 1);
  }

  /// Gives the schedule a metric, which must be the same on all ranks. Acts at once outside of accumulate(), as after
  /// an evaluation; within, when the window closes. A skipped update does not matter to it. Throws ConfigError when
  /// it goes by the number of updates.
  void step(double metric) {
    const auto& step = require<MetricStep>("it goes by the number of updates; use step()");
    if (shared_->state.records()) throw ConfigError("a scheduler that goes by a metric cannot be part of it");
    if (shared_->state.in_micro_batch() && !shared_->state.acts()) return;
    step(metric);
    shared_->updates += 1;
  }

  /// Updates, or metrics, that the schedule has advanced by.
  std::int64_t updates() const { return shared_->updates; }

  /// The inner scheduler; null when it is LibTorch's, whose state cannot be had.
  Scheduler* inner() const { return shared_->inner; }

  /// Takes over the number of updates, when the inner scheduler got another one's state, which had `inner_steps`.
  void set_inner_steps(std::int64_t inner_steps) {
    shared_->updates = goes_by_metric() ? inner_steps : inner_steps / shared_->steps_per_update;
  }

  /// Whether it goes by a metric.
  bool goes_by_metric() const { return std::holds_alternative<MetricStep>(shared_->step); }

  /// Advances the schedule to `updates`. Throws ConfigError when it would need metrics for that.
  void catch_up(std::int64_t updates) {
    if (shared_->updates >= updates) return;
    const auto& step = require<Step>(
        "its ranks have seen different numbers of metrics; give it one after join_uneven_inputs, that all ranks share");
    for (; shared_->updates < updates; shared_->updates += 1)
      for (int i = 0; i < shared_->steps_per_update; ++i) step();
  }

 private:
  using Step = std::function<void()>;
  using MetricStep = std::function<void(double)>;

  struct Shared {
    std::variant<Step, MetricStep> step;
    const nn::AccumulationWindow& state;
    int steps_per_update;
    std::int64_t updates;
    std::function<bool()> skipped;
    Scheduler* inner;
  };

  template <class Inner>
  static Scheduler* ours(Inner& inner) {
    if constexpr (std::derived_from<Inner, Scheduler>)
      return &inner;
    else
      return nullptr;
  }

  friend class Observer<AcceleratedScheduler>;
  explicit AcceleratedScheduler(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  template <class Kind>
  const Kind& require(const char* otherwise) const {
    const Kind* step = std::get_if<Kind>(&shared_->step);
    if (!step) throw ConfigError(std::string("a scheduler cannot take this step: ") + otherwise);
    return *step;
  }

  std::shared_ptr<Shared> shared_;
};

}  // namespace tandem::optim
