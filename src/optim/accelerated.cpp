#include "tandem/optim/accelerated.h"

#include <string>

#include <ATen/core/grad_mode.h>
#include <torch/optim/lbfgs.h>

#include "optim/optimizer_fields.h"

namespace tandem::optim {
namespace {

// Those of LibTorch's whose step calls its closure once, before everything else.
bool calls_closure_once(const torch::optim::Optimizer& inner) {
  return with_class(inner, [](auto) {});
}

}  // namespace

void AcceleratedOptimizer::check_plain_step() const {
  if (dynamic_cast<const torch::optim::LBFGS*>(&shared_->inner))
    throw ConfigError(
        "LBFGS evaluates the loss several times a step, and needs a closure for it: optimizer.step([&] { "
        "optimizer.zero_grad(); auto loss = ...; accelerator.backward(loss); return loss; })");
  if (shared_->state.has_sums())
    throw ConfigError(
        "step() on gradients that are sums over items: no backward(loss_sum, items) has ended the window and made "
        "them a mean; step after that one, or within accumulate()");
}

void AcceleratedOptimizer::check_closure_step(const Closure& closure) const {
  const nn::AccumulationWindow& state = shared_->state;
  if (!closure) throw ConfigError("step(closure) got an empty function; give it one that computes the loss");
  if (shared_->scaler)
    throw ConfigError("step(closure) under mixed precision fp16, whose scale no closure knows of; use bf16");
  if (state.records()) throw ConfigError("step(closure) cannot be recorded; call it outside of compile_step");
  if (state.in_closure()) throw ConfigError("step(closure) within the closure of another step");
  if (!state.acts() || (state.in_micro_batch() && state.length() > 1))
    throw ConfigError(
        "step(closure) in a window of several micro-batches, of which a closure would see only one; set "
        "gradient_accumulation_steps to 1, and go through several batches within the closure");
}

at::Tensor AcceleratedOptimizer::step(const Closure& closure) {
  shared_->token.check();
  check_closure_step(closure);
  const trace::Range range(trace::Event::optimizer);
  at::Tensor loss;
  const auto step_with = [&](const Closure& evaluate) {
    if (!calls_closure_once(shared_->inner)) return divided([&] { loss = shared_->inner.step(evaluate); });
    {
      const at::AutoGradMode computes_gradients(true);
      loss = evaluate();
    }
    update();
  };
  if (shared_->closure_steps)
    shared_->closure_steps(closure, step_with);
  else
    step_with(closure);
  shared_->skipped = false;
  shared_->updates += 1;
  if (shared_->updated) shared_->updated();
  return loss;
}

}  // namespace tandem::optim
