// What the handles that `prepare` returns for optimizers and schedulers are made of.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "core/cancel_token.h"
#include "nn/accumulation_window.h"
#include "optim/sharded_optimizer.h"
#include "tandem/optim/accelerated.h"
#include "tandem/optim/detail/optimizer_class.h"
#include "tandem/optim/detail/scheduler_calls.h"
#include "tandem/optim/fused_step.h"
#include "tandem/optim/grad_scaler.h"

namespace tandem::optim {

/// Calls `step` with what evaluates `closure` as all ranks have to: gradients and loss of all of them.
using ClosureSteps = std::function<void(const Closure& closure, const std::function<void(const Closure&)>& step)>;

/// One prepared optimizer. What it refers to outlives it.
struct AcceleratedOptimizer::Shared {
  torch::optim::Optimizer& inner;
  nn::AccumulationWindow& state;
  const CancelToken& token;
  GradScaler* scaler = nullptr;                 // has scaled the gradients; null: they are as they are
  std::optional<FusedStep> fused_step{};        // updates the parameters where it can, instead of inner.step()
  std::unique_ptr<ShardedOptimizer> sharded{};  // divides the updates over the ranks; null: each makes all
  ClosureSteps closure_steps{};                 // makes steps with a closure; empty: closures are called as they are
  OptimizerClass its_class{};
  std::function<void()> updated{};  // called after each update; may be empty

  std::int64_t updates = 0;
  bool skipped = false;  // the last step
};

/// One prepared scheduler. What it refers to outlives it.
struct AcceleratedScheduler::Shared {
  detail::SchedulerCalls calls;
  const nn::AccumulationWindow& state;
  int steps_per_update;             // of a scheduler by the number of updates; one by a metric steps once a metric
  std::function<bool()> skipped{};  // whether the last step of its optimizer was none; empty: never

  std::int64_t updates = 0;
};

/// Leads to what a handle is made of, which programs do not see.
struct Insides {
  template <class Handle>
  static const std::shared_ptr<typename Handle::Shared>& of(const Handle& handle) {
    return handle.shared_;
  }
};

/// How the update of `optimizer` is divided over the ranks; null when it is not.
ShardedOptimizer* sharded_of(const AcceleratedOptimizer& optimizer);

/// What was known of the optimizer's class when it was prepared.
const OptimizerClass& class_of(const AcceleratedOptimizer& optimizer);

/// Takes over the number of updates, when the inner optimizer got another one's state.
void set_updates(const AcceleratedOptimizer& optimizer, std::int64_t updates, bool last_step_was_skipped);

/// Takes over the number of updates, when the inner scheduler got another one's state, which had `inner_steps`.
void set_inner_steps(const AcceleratedScheduler& scheduler, std::int64_t inner_steps);

/// Whether it goes by a metric.
bool goes_by_metric(const AcceleratedScheduler& scheduler);

/// Advances the schedule to `updates`. Throws ConfigError when it would need metrics for that.
void catch_up(const AcceleratedScheduler& scheduler, std::int64_t updates);

/// Refers to a handle for as long as a copy of it lives elsewhere.
template <class Handle>
class Observer {
 public:
  /// Refers to what `handle` and its copies share.
  explicit Observer(const Handle& handle) : shared_(Insides::of(handle)) {}

  /// A copy of the handle; nothing when no copy is left.
  std::optional<Handle> lock() const {
    auto shared = shared_.lock();
    return shared ? std::optional(Handle(std::move(shared))) : std::nullopt;
  }

 private:
  std::weak_ptr<typename Handle::Shared> shared_;
};

}  // namespace tandem::optim
