#pragma once

#include <functional>
#include <memory>

#include <torch/optim/optimizer.h>

#include "tandem/core/cancel_token.h"
#include "tandem/nn/gradient_state.h"

namespace tandem::optim {

/// What `prepare` returns for an optimizer: acts only in the micro-batch that closes its accumulation window.
/// The inner optimizer and the rank's state outlive it. Copies share the inner optimizer.
class AcceleratedOptimizer {
 public:
  AcceleratedOptimizer(torch::optim::Optimizer& inner, const GradientState& state, const CancelToken& token)
      : inner_(&inner), state_(&state), token_(&token), updates_(std::make_shared<std::int64_t>(0)) {}

  /// Updates the parameters, when gradients are in sync.
  void step() {
    token_->check();
    if (!state_->sync_gradients) return;
    inner_->step();
    *updates_ += 1;
  }

  /// Drops the gradients, when they are in sync.
  void zero_grad(bool set_to_none = true) {
    if (state_->sync_gradients) inner_->zero_grad(set_to_none);
  }

  /// Updates made so far.
  std::int64_t updates() const { return *updates_; }

  torch::optim::Optimizer& inner() const { return *inner_; }

 private:
  torch::optim::Optimizer* inner_;
  const GradientState* state_;
  const CancelToken* token_;
  std::shared_ptr<std::int64_t> updates_;
};

/// What `prepare` returns for a scheduler: advances once an optimizer update.
class AcceleratedScheduler {
 public:
  /// `step` advances the inner scheduler by one; it is called `steps_per_update` times an update.
  AcceleratedScheduler(std::function<void()> step, const GradientState& state, int steps_per_update)
      : step_(std::move(step)), state_(&state), steps_per_update_(steps_per_update) {}

  /// Advances the schedule, when gradients are in sync.
  void step() {
    if (!state_->sync_gradients) return;
    for (int i = 0; i < steps_per_update_; ++i) step_();
  }

 private:
  std::function<void()> step_;
  const GradientState* state_;
  int steps_per_update_;
};

}  // namespace tandem::optim
