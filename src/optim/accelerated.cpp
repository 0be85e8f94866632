#include "tandem/optim/accelerated.h"

#include <string>
#include <variant>

#include <ATen/core/grad_mode.h>
#include <torch/optim/lbfgs.h>

#include "nn/recording.h"
#include "optim/accelerated_handles.h"
#include "optim/optimizer_fields.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::optim {
namespace {

using OptimizerShared = AcceleratedOptimizer::Shared;

// Those of LibTorch's whose step calls its closure once, before everything else.
bool calls_closure_once(const torch::optim::Optimizer& inner) {
  return with_class(inner, [](auto) {});
}

void check_plain_step(const OptimizerShared& shared) {
  if (dynamic_cast<const torch::optim::LBFGS*>(&shared.inner))
    throw ConfigError(
        "LBFGS evaluates the loss several times a step, and needs a closure for it: optimizer.step([&] { "
        "optimizer.zero_grad(); auto loss = ...; accelerator.backward(loss); return loss; })");
  if (shared.state.awaits_reduction())
    throw ConfigError(
        "step() without the gradients of all logical shards: the last of them that this rank computes has made no "
        "backward pass in this window; let each make one, of a loss of 0 where there is nothing to learn");
  if (shared.state.has_sums())
    throw ConfigError(
        "step() on gradients that are sums over items: no backward(loss_sum, items) has ended the window and made "
        "them a mean; step after that one, or within accumulate()");
}

void check_closure_step(const OptimizerShared& shared, const Closure& closure) {
  const nn::AccumulationWindow& state = shared.state;
  if (!closure) throw ConfigError("step(closure) got an empty function; give it one that computes the loss");
  if (shared.scaler)
    throw ConfigError("step(closure) under mixed precision fp16, whose scale no closure knows of; use bf16");
  if (state.records()) throw ConfigError("step(closure) cannot be recorded; call it outside of compile_step");
  if (state.in_closure()) throw ConfigError("step(closure) within the closure of another step");
  if (!state.acts() || (state.in_micro_batch() && state.length() > 1))
    throw ConfigError(
        "step(closure) in a window of several micro-batches, of which a closure would see only one; set "
        "gradient_accumulation_steps to 1, and go through several batches within the closure");
}

void record_step(const std::shared_ptr<OptimizerShared>& shared, nn::Recording& recording) {
  if (!shared->fused_step || !shared->fused_step->step(&recording))
    throw ConfigError(
        "its optimizer has no step that can be recorded; those of SGD, Adam and AdamW for float32 parameters have (see "
        "FusedStep)");
  recording.at_each_replay({.after = [shared] { shared->updates += 1; }});
}

// Has `update` update this rank's share of the parameters, where they are divided, and otherwise all.
template <class Update>
void divided(OptimizerShared& shared, const Update& update) {
  if (shared.sharded)
    shared.sharded->step(update);
  else
    update();
}

// A graph that has saved the weights from before is of no use any more. LibTorch's SGD writes through data(), which
// does not tell.
void count_writes(const torch::optim::Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params())
      if (parameter.grad().defined()) parameter.unsafeGetTensorImpl()->bump_version();
}

void update(OptimizerShared& shared) {
  // Also where this rank's part of the update could be fused and others' could not.
  const bool fused = shared.fused_step && shared.fused_step->suits_all();
  divided(shared, [&shared, fused] {
    if (fused)
      shared.fused_step->step(shared.state.recording());
    else
      shared.inner.step();
    count_writes(shared.inner);
  });
}

void count_update(OptimizerShared& shared) {
  shared.updates += 1;
  if (shared.updated) shared.updated();
}

}  // namespace

void AcceleratedOptimizer::step() {
  shared_->token.check();
  shared_->state.note_update();
  if (!shared_->state.acts()) return;
  check_plain_step(*shared_);
  const trace::Range range(trace::Event::optimizer);
  if (nn::Recording* recording = shared_->state.records()) return record_step(shared_, *recording);
  if (shared_->scaler)
    shared_->skipped = !shared_->scaler->step(shared_->inner, [this] { update(*shared_); });
  else
    update(*shared_);
  if (!shared_->skipped) count_update(*shared_);
}

at::Tensor AcceleratedOptimizer::step(const Closure& closure) {
  shared_->token.check();
  check_closure_step(*shared_, closure);
  const trace::Range range(trace::Event::optimizer);
  at::Tensor loss;
  const auto step_with = [&](const Closure& evaluate) {
    if (!calls_closure_once(shared_->inner)) return divided(*shared_, [&] { loss = shared_->inner.step(evaluate); });
    {
      const at::AutoGradMode computes_gradients(true);
      loss = evaluate();
    }
    update(*shared_);
  };
  if (shared_->closure_steps)
    shared_->closure_steps(closure, step_with);
  else
    step_with(closure);
  shared_->skipped = false;
  count_update(*shared_);
  return loss;
}

bool AcceleratedOptimizer::step_was_skipped() const { return shared_->skipped; }

void AcceleratedOptimizer::zero_grad(bool set_to_none) {
  const bool drops = shared_->state.drops_gradients();
  shared_->state.note_update();
  if (!drops) return;
  shared_->inner.zero_grad(set_to_none);
  if (shared_->scaler) shared_->scaler->gradients_dropped(shared_->inner);
}

std::int64_t AcceleratedOptimizer::updates() const { return shared_->updates; }

void set_updates(const AcceleratedOptimizer& optimizer, std::int64_t updates, bool last_step_was_skipped) {
  Insides::of(optimizer)->updates = updates;
  Insides::of(optimizer)->skipped = last_step_was_skipped;
}

torch::optim::Optimizer& AcceleratedOptimizer::inner() const { return shared_->inner; }

std::vector<torch::optim::OptimizerParamGroup>& AcceleratedOptimizer::param_groups() const {
  return shared_->inner.param_groups();
}

const OptimizerClass& class_of(const AcceleratedOptimizer& optimizer) { return Insides::of(optimizer)->its_class; }

ShardedOptimizer* sharded_of(const AcceleratedOptimizer& optimizer) { return Insides::of(optimizer)->sharded.get(); }

// ---- AcceleratedScheduler

namespace {

template <class Kind>
const Kind& require_kind(const AcceleratedScheduler::Shared& shared, const char* otherwise) {
  const Kind* step = std::get_if<Kind>(&shared.calls.step);
  if (!step) throw ConfigError(std::string("a scheduler cannot take this step: ") + otherwise);
  return *step;
}

using Step = detail::SchedulerCalls::Step;
using MetricStep = detail::SchedulerCalls::MetricStep;

}  // namespace

void AcceleratedScheduler::step() {
  require_kind<Step>(*shared_, "it goes by a metric; use step(metric)");
  if (nn::Recording* recording = shared_->state.records())
    return recording->at_each_replay({.after = [same = *this]() mutable { same.step(); }});
  if (!shared_->state.acts() || (shared_->skipped && shared_->skipped())) return;
  catch_up(*this, updates() + 1);
}

void AcceleratedScheduler::step(double metric) {
  const auto& step = require_kind<MetricStep>(*shared_, "it goes by the number of updates; use step()");
  if (shared_->state.records()) throw ConfigError("a scheduler that goes by a metric cannot be part of it");
  if (shared_->state.in_micro_batch() && !shared_->state.acts()) return;
  step(metric);
  shared_->updates += 1;
}

std::int64_t AcceleratedScheduler::updates() const { return shared_->updates; }

Scheduler* AcceleratedScheduler::inner() const { return shared_->calls.ours; }

void set_inner_steps(const AcceleratedScheduler& scheduler, std::int64_t inner_steps) {
  AcceleratedScheduler::Shared& shared = *Insides::of(scheduler);
  shared.updates = goes_by_metric(scheduler) ? inner_steps : inner_steps / shared.steps_per_update;
}

bool goes_by_metric(const AcceleratedScheduler& scheduler) {
  return std::holds_alternative<MetricStep>(Insides::of(scheduler)->calls.step);
}

void catch_up(const AcceleratedScheduler& scheduler, std::int64_t updates) {
  AcceleratedScheduler::Shared& shared = *Insides::of(scheduler);
  if (shared.updates >= updates) return;
  const auto& step = require_kind<Step>(shared,
                                        "its ranks have seen different numbers of metrics; give it one after "
                                        "join_uneven_inputs, that all ranks share");
  for (; shared.updates < updates; shared.updates += 1)
    for (int i = 0; i < shared.steps_per_update; ++i) step();
}

}  // namespace tandem::optim
