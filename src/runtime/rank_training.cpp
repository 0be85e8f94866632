#include "runtime/rank_training.h"

#include <algorithm>

#include "checkpoint/on_all_ranks.h"
#include "comm/agree.h"
#include "data/prepare_loader.h"
#include "nn/same_models.h"
#include "optim/same_optimizers.h"
#include "runtime/profile_session.h"
#include "runtime/step_observer.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {
namespace {

CheckpointedRank checkpointed(RankContext& context) {
  const LaunchConfig& config = context.config();
  return {.group = *context.group,
          .rank = context.rank,
          .devices = context.state->devices,
          .seed = config.seed,
          .scheduler_steps_per_update = config.scheduler_steps_per_update,
          .options = config.checkpoints,
          .on_warning = config.on_warning,
          .generators = context.generators,
          .window = context.window,
          .shards = context.shards.get(),
          .threads_per_rank = context.state->threads_per_rank};
}

}  // namespace

RankTraining::RankTraining(RankContext& rank)
    : context(rank),
      checkpoints(checkpointed(rank), parts),
      updates(rank, parts),
      join(rank, parts, updates),
      warnings(rank, parts),
      recorder(rank, parts, join),
      passes(rank, parts, join, recorder, warnings),
      clipping(rank, parts, updates),
      means(rank) {
  const LaunchConfig& config = context.config();
  if (config.exact) {
    exact.emplace(context, parts, join);
    join.set_exact(&*exact);
    passes.set_exact(&*exact);
  }
  if (config.mixed_precision == Precision::fp16)
    parts.scaler.emplace(config.grad_scaler, context.device(),
                         [this](at::Tensor& found_inf) { agree_on_step(found_inf); });
}

// ---- preparing

std::shared_ptr<nn::ModelReducer> RankTraining::prepare_module(const std::shared_ptr<torch::nn::Module>& module) {
  auto reducer = module ? parts.reducers.find(*module) : nullptr;
  if (reducer && !reducer->added_parameter()) return reducer;
  const LaunchConfig& config = context.config();
  nn::check_same_models(*context.group, context.rank, module.get());
  comm::check_together(*context.group, context.rank, {.operation = "prepare(model)"}, [&] {
    if (config.device_placement) module->to(context.device());
  });
  if (reducer) {
    reducer->update();
    return reducer;
  }
  nn::GradientReducerOptions options = config.gradient_reducer;
  options.check_finite = options.check_finite && !parts.scaler;
  reducer = parts.reducers.add(module, *context.communicator, *context.group, options);
  updates.lend(reducer->weights());
  return reducer;
}

optim::AcceleratedOptimizer RankTraining::prepare_optimizer(torch::optim::Optimizer& optimizer,
                                                            optim::OptimizerClass its_class) {
  optim::check_same_optimizers(*context.group, context.rank, optimizer, parts.reducers);
  warnings.forget(optimizer);
  using Shared = optim::AcceleratedOptimizer::Shared;
  const bool fused = context.config().fused_optimizers;
  const optim::AcceleratedOptimizer prepared(std::make_shared<Shared>(Shared{
      .inner = optimizer,
      .state = context.window,
      .token = context.group->token(),
      .scaler = parts.scaler ? &*parts.scaler : nullptr,
      .fused_step = fused ? std::optional(optim::FusedStep(optimizer)) : std::nullopt,
      .sharded = updates.divide(optimizer),
      .closure_steps = [this](const auto& closure, const auto& step) { step_with_closure(closure, step); },
      .its_class = std::move(its_class),
      .updated = [this, &optimizer] { after_update(optimizer); },
  }));
  parts.optimizers.emplace_back(prepared);
  return prepared;
}

// The ranks meet so that none goes on with rates of its own: nothing compares them where each makes all updates.
optim::AcceleratedScheduler RankTraining::prepare_scheduler(optim::detail::SchedulerCalls calls) {
  context.group->meet(context.rank, {.operation = "prepare(scheduler)"});
  std::function<bool()> skipped;
  if (parts.scaler)  // LibTorch's schedulers do not say whose they are
    skipped = [this, of = calls.ours ? &calls.ours->optimizer() : nullptr] { return step_was_skipped(of); };
  using Shared = optim::AcceleratedScheduler::Shared;
  const optim::AcceleratedScheduler prepared(
      std::make_shared<Shared>(Shared{.calls = std::move(calls),
                                      .state = context.window,
                                      .steps_per_update = context.config().scheduler_steps_per_update,
                                      .skipped = std::move(skipped)}));
  parts.schedulers.emplace_back(prepared);
  return prepared;
}

void RankTraining::after_update(const torch::optim::Optimizer& optimizer) {
  warnings.look_for_foreign_parameters(optimizer);
  if (updates.apart()) return;  // ranks take different steps
  warnings.look_for_local_gradients(optimizer);
  for (const auto& reducer : parts.reducers) reducer->updated_by(optimizer);
}

void RankTraining::step_with_closure(const optim::Closure& closure,
                                     const std::function<void(const optim::Closure&)>& step) {
  if (exact)
    throw ConfigError("step(closure) in exact mode, whose logical shards take turns: a closure would see one of them");
  if (join.active()) throw ConfigError("step(closure) within join_uneven_inputs, whose ranks take different steps");
  step([&] { return passes.evaluate(closure); });
  if (!context.window.in_micro_batch()) passes.end_window();
}

// The reduced gradients are the same on all ranks, but an optimizer may have others too: parameters of no prepared
// model, or gradients that a rank has changed itself. A step that only some ranks took would part their weights.
void RankTraining::agree_on_step(at::Tensor& found_inf) {
  join.meet(Join::Turn::agrees_on_step);
  context.communicator->all_reduce(found_inf, comm::ReduceOp::max);
}

std::shared_ptr<data::LoaderBase> RankTraining::prepare_loader(const data::DataLoaderOptions& options,
                                                               const data::detail::AnyDataset& dataset) {
  const LaunchConfig& config = context.config();
  std::function<bool(const data::EpochPosition&)> before_batch;
  if (StepObserver* const observer = context.observer)
    before_batch = [observer](const data::EpochPosition& position) { return observer->before_batch(position); };
  data::LoaderContext where{.rank = context.rank,
                            .shards = context.shards_each(),
                            .group = context.group,
                            .active = &context.window.loaders(),
                            .device = config.device_placement ? std::optional(context.device()) : std::nullopt,
                            .non_blocking = config.data_loader.non_blocking,
                            .align = config.exact.has_value(),
                            .on_epoch = rng_synchronisation(),
                            .before_batch = std::move(before_batch)};
  if (exact) where.on_batch = [this] { exact->choose_generators(); };
  auto loader = data::prepare_loader(options, dataset, config.data_loader, config.seed, std::move(where));
  parts.loaders.emplace_back(loader);
  return loader;
}

std::function<void()> RankTraining::rng_synchronisation() const {
  const auto& types = context.config().data_loader.rng_types;
  const bool nothing_to_do =
      std::all_of(types.begin(), types.end(), [](data::RngType type) { return type == data::RngType::generator; });
  if (nothing_to_do) return {};
  return [this, types] { synchronize_generators(types); };
}

void RankTraining::synchronize_generators(const std::vector<data::RngType>& types) const {
  for (const data::RngType type : types) {
    if (type == data::RngType::generator) continue;
    at::Generator* const generator =
        type == data::RngType::cpu ? &context.generators.cpu : context.generators.of_gpu(context.device());
    if (!generator) continue;
    at::Tensor state = generator->get_state();
    context.communicator->broadcast(state, 0);
    generator->set_state(state);
    if (context.shards) context.shards->set_states(*generator, state);
  }
}

// ---- training

void RankTraining::begin_micro_batch(bool close) {
  context.group->token().check();  // a body may make no other call that waits
  nn::AccumulationWindow& window = context.window;
  window.check_micro_batch();
  if (exact) exact->check_turn();
  if (context.observer && window.sub_step() == 0) context.observer->before_micro_batch();
  // The scale stays the same within a window, whose gradients add up.
  if (parts.scaler && !window.is_open()) parts.scaler->begin_iteration();
  window.begin_micro_batch(close, exact && join.active() && exact->is_last_here());
  means.begin_micro_batch();
  if (window.length() == 1 && window.sub_step() == 0) parts.begin_window();
  if (exact) return exact->begin_micro_batch();
  parts.reducers.keep_apart(!window.closes_window());
  if (const auto factor = window.correction()) parts.scale_window(*factor);
}

void RankTraining::end_micro_batch() noexcept {
  if (exact) exact->end_micro_batch();
  context.window.end_micro_batch();
  if (exact) exact->choose_generators();
  if (!context.window.closes_window()) return;
  if (context.observer) context.observer->after_window();
  trace::next_step();
  if (profiler) profiler->step_ended();
}

bool RankTraining::step_was_skipped(const torch::optim::Optimizer* of) const {
  bool any = false;
  for (const auto& optimizer : parts.alive_optimizers()) {
    if (&optimizer.inner() == of) return optimizer.step_was_skipped();
    any = any || optimizer.step_was_skipped();
  }
  return any;
}

void RankTraining::throw_if_not_finite() const {
  for (const auto& reducer : parts.reducers) reducer->throw_if_not_finite(true);
}

std::vector<std::shared_ptr<torch::nn::Module>> RankTraining::modules() const {
  std::vector<std::shared_ptr<torch::nn::Module>> modules;
  for (const auto& reducer : parts.reducers) modules.push_back(reducer->module());
  return modules;
}

// ---- files

// On all ranks the same, also when the window is open on one only.
void RankTraining::check_between_updates() const {
  const nn::AccumulationWindow& window = context.window;
  if (join.active() || window.trains_alone())  // on all ranks, which do not meet in a join
    throw ConfigError("within join_uneven_inputs and local_sgd ranks differ: save or load the state outside");
  check_on_all(*context.group, context.rank, [&] {
    if (window.is_open() && !(window.in_micro_batch() && window.closes_window()))
      throw ConfigError(
          "the accumulation window is open, and its gradients are no part of a state: save or load it in or "
          "after the micro-batch that closes the window (sync_gradients())");
  });
}

std::string RankTraining::save_state(const std::string& directory, const SaveStateOptions& options,
                                     SaveWritten written) {
  check_between_updates();
  if (exact) exact->finish_buffers();
  return checkpoints.save(directory, options, std::move(written));
}

std::string RankTraining::load_state(const std::string& directory, const LoadStateOptions& options) {
  check_between_updates();
  if (exact) exact->finish_buffers();
  auto loaded = checkpoints.load(directory, options);
  if (context.observer && loaded.updates) context.observer->continue_at(*loaded.updates);
  return std::move(loaded.directory);
}

}  // namespace tandem
