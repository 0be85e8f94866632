#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include <torch/optim/optimizer.h>

#include "tandem/core/cancel_token.h"
#include "tandem/nn/gradient_state.h"
#include "tandem/optim/fused_step.h"

namespace tandem::optim {

/// Refers to a wrapper for as long as a copy of it lives elsewhere.
template <class Wrapper>
class Observer {
 public:
  explicit Observer(const Wrapper& wrapper) : shared_(wrapper.shared_) {}

  std::optional<Wrapper> lock() const {
    auto shared = shared_.lock();
    return shared ? std::optional(Wrapper(std::move(shared))) : std::nullopt;
  }

 private:
  std::weak_ptr<typename Wrapper::Shared> shared_;
};

/// What `prepare` returns for an optimizer: acts only in the micro-batch that closes its accumulation window.
/// The inner optimizer and the rank's state outlive it. Copies share the inner optimizer and the count of updates.
class AcceleratedOptimizer {
 public:
  /// `fused`: a FusedStep updates the parameters where it can, instead of inner.step().
  AcceleratedOptimizer(torch::optim::Optimizer& inner, const GradientState& state, const CancelToken& token, bool fused)
      : shared_(std::make_shared<Shared>(
            Shared{inner, state, token, 0, fused ? std::optional(FusedStep(inner)) : std::nullopt})) {}

  /// Updates the parameters, when gradients are in sync.
  void step() {
    shared_->token.check();
    if (!shared_->state.sync_gradients) return;
    if (shared_->fused_step)
      shared_->fused_step->step();
    else
      shared_->inner.step();
    shared_->updates += 1;
  }

  /// Drops the gradients, when they are in sync.
  void zero_grad(bool set_to_none = true) {
    if (shared_->state.sync_gradients) shared_->inner.zero_grad(set_to_none);
  }

  /// Updates made so far.
  std::int64_t updates() const { return shared_->updates; }

  /// Takes over the number of updates, when the inner optimizer got another one's state.
  void set_updates(std::int64_t updates) { shared_->updates = updates; }

  torch::optim::Optimizer& inner() const { return shared_->inner; }

 private:
  struct Shared {
    torch::optim::Optimizer& inner;
    const GradientState& state;
    const CancelToken& token;
    std::int64_t updates;
    std::optional<FusedStep> fused_step;
  };

  friend class Observer<AcceleratedOptimizer>;
  explicit AcceleratedOptimizer(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  std::shared_ptr<Shared> shared_;
};

/// What `prepare` returns for a scheduler: advances once an optimizer update. Copies share the count.
class AcceleratedScheduler {
 public:
  /// `step` advances the inner scheduler by one; it is called `steps_per_update` times an update.
  AcceleratedScheduler(std::function<void()> step, const GradientState& state, int steps_per_update)
      : shared_(std::make_shared<Shared>(Shared{std::move(step), state, steps_per_update, 0})) {}

  /// Advances the schedule, when gradients are in sync.
  void step() {
    if (shared_->state.sync_gradients) catch_up(updates() + 1);
  }

  /// Updates that the schedule has advanced by.
  std::int64_t updates() const { return shared_->updates; }

  /// Advances the schedule to `updates`.
  void catch_up(std::int64_t updates) {
    for (; shared_->updates < updates; shared_->updates += 1)
      for (int i = 0; i < shared_->steps_per_update; ++i) shared_->step();
  }

 private:
  struct Shared {
    std::function<void()> step;
    const GradientState& state;
    int steps_per_update;
    std::int64_t updates;
  };

  friend class Observer<AcceleratedScheduler>;
  explicit AcceleratedScheduler(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  std::shared_ptr<Shared> shared_;
};

}  // namespace tandem::optim
