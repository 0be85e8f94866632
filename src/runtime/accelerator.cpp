#include "tandem/runtime/accelerator.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "runtime/checkpoints.h"
#include "runtime/on_all_ranks.h"
#include "runtime/profile_session.h"
#include "runtime/step_follower.h"
#include "tandem/core/error.h"

namespace tandem {

Accelerator::Accelerator(RankContext& context)
    : RankHandle(context), checkpoints_(std::make_unique<Checkpoints>(*this, context, prepared_)) {
  const LaunchConfig& config = context_.state->config;
  if (config.mixed_precision == Precision::fp16)
    prepared_.scaler.emplace(config.grad_scaler, device(), [this](at::Tensor& found_inf) { agree_on_step(found_inf); });
}

Accelerator::~Accelerator() = default;

std::shared_ptr<nn::GradientReducer> Accelerator::reducer_of(const std::shared_ptr<torch::nn::Module>& module) {
  auto reducer = prepared_.reducers.find(*module);
  if (reducer && !reducer->added_parameter()) return reducer;
  const LaunchConfig& config = context_.state->config;
  if (config.device_placement) module->to(device());
  if (reducer) {
    reducer->update();
    return reducer;
  }
  nn::GradientReducerOptions options = config.gradient_reducer;
  options.check_finite = options.check_finite && !prepared_.scaler;
  reducer = std::make_shared<nn::GradientReducer>(module, *context_.communicator, *context_.group, options);
  prepared_.reducers.add(reducer);
  return reducer;
}

std::unique_ptr<optim::ShardedOptimizer> Accelerator::sharded(torch::optim::Optimizer& optimizer) {
  const Sharding sharding = context_.state->config.sharding;
  const bool automatic = sharding == Sharding::automatic;
  if (world_size() == 1 || sharding == Sharding::none || (automatic && !device().is_cpu())) return nullptr;
  using Weights = optim::ShardedOptimizer::Weights;
  auto sharded =
      std::make_unique<optim::ShardedOptimizer>(optimizer, *context_.communicator, *context_.group, prepared_.reducers,
                                                automatic ? Weights::shared : Weights::own);
  if (context_.gradients.local_sgd || reductions_in_join_) sharded->pause();
  return sharded;
}

void Accelerator::for_each_sharded(void (optim::ShardedOptimizer::*action)()) {
  for (auto& optimizer : prepared_.alive_optimizers())
    if (optimizer.sharded()) (optimizer.sharded()->*action)();
}

bool Accelerator::stop_requested() const { return context_.follower && context_.follower->stops(); }

void Accelerator::set_total_steps(std::int64_t steps) {
  if (context_.follower) context_.follower->set_total_steps(steps);
}

std::vector<std::shared_ptr<torch::nn::Module>> Accelerator::prepared_modules() const {
  std::vector<std::shared_ptr<torch::nn::Module>> modules;
  for (const auto& reducer : prepared_.reducers) modules.push_back(reducer->module());
  return modules;
}

data::LoaderContext Accelerator::loader_context() {
  const auto& config = context_.state->config;
  std::function<bool(const data::EpochPosition&)> before_batch;
  if (StepFollower* const follower = context_.follower)
    before_batch = [follower](const data::EpochPosition& position) { return follower->before_batch(position); };
  return {.rank = rank(),
          .group = context_.group,
          .active = &context_.gradients.loaders,
          .device = config.device_placement ? std::optional(device()) : std::nullopt,
          .non_blocking = config.data_loader.non_blocking,
          .on_epoch = rng_synchronisation(),
          .before_batch = std::move(before_batch)};
}

void Accelerator::begin_micro_batch(bool close) {
  context_.group->token().check();  // a body may make no other call that waits
  if (context_.follower) context_.follower->before_micro_batch();
  GradientState& state = context_.gradients;
  // The scale stays the same within a window, whose gradients add up.
  if (prepared_.scaler && state.window_length == 0) prepared_.scaler->begin_iteration();
  state.begin_micro_batch(close);
  if (state.window_length == 1) {
    begin_window_of_gradients();
    state.has_mean = false;  // of passes before it
  }
  // The micro-batches before this one were divided by num_steps; a window that ends early is shorter.
  if (state.sync_gradients && state.window_length > 1 && state.window_length < state.num_steps && !state.items)
    scale_window(static_cast<double>(state.num_steps) / state.window_length);
}

void Accelerator::end_micro_batch() noexcept {
  context_.gradients.end_micro_batch();
  if (!sync_gradients()) return;
  if (context_.follower) context_.follower->after_window();
  trace::next_step();
  if (profiler_) profiler_->step_ended();
}

void Accelerator::scale_window(double factor) {
  for (const auto& reducer : prepared_.reducers) reducer->scale_window(factor);
}

// `loss` as autograd is to see it.
at::Tensor Accelerator::scaled(const at::Tensor& loss) {
  if (!prepared_.scaler) return loss;
  if (!context_.gradients.inside_window && prepared_.scaler->has_stepped()) prepared_.scaler->begin_iteration();
  return prepared_.scaler->scale(loss);
}

void Accelerator::backward(const at::Tensor& loss, BackwardOptions options) {
  const trace::Range range(trace::Event::backward);
  GradientState& state = context_.gradients;
  context_.group->token().check();
  if (state.items) throw ConfigError("backward(loss) after backward(loss_sum, items) in one accumulation window");
  if (context_.follower) context_.follower->after_backward(loss);
  const at::Tensor mean = state.divisor() > 1 ? loss / state.divisor() : loss;
  state.has_mean = true;
  if (!state.sync_gradients && !state.trigger_sync) return run_backward(mean, options);
  reduce_backward(mean, options, main_of_pass(JoinState::reduces_mean));
  if (!state.inside_window) state.has_mean = false;
}

void Accelerator::backward(const at::Tensor& loss_sum, double items, BackwardOptions options) {
  const trace::Range range(trace::Event::backward);
  GradientState& state = context_.gradients;
  context_.group->token().check();
  if (state.has_mean) throw ConfigError("backward(loss_sum, items) after backward(loss) in one accumulation window");
  if (state.records()) throw ConfigError("backward(loss_sum, items) asks the other ranks; use backward(loss)");
  if (state.items_reduced)
    throw ConfigError(
        "backward(loss_sum, items) twice in the micro-batch that closes a window; add the losses up first");
  if (!(items >= 0) || std::isinf(items))
    throw ConfigError("backward with " + std::to_string(items) + " items; use their number, 0 or more");
  if (context_.follower && items > 0) context_.follower->after_backward(loss_sum / items);
  state.items = state.items.value_or(0) + items;
  if (!state.sync_gradients) {
    if (!state.trigger_sync) return run_backward(loss_sum, options);
    return reduce_backward(loss_sum, options, main_of_pass(JoinState::reduces_mean));
  }
  const int main = main_of_pass(JoinState::reduces_items);
  const double factor = factor_over_items(*state.items);
  scale_window(factor);
  reduce_backward(loss_sum * factor, options, main);
  if (state.inside_window)
    state.items_reduced = true;
  else
    state.begin_window();
}

// A backward pass whose gradients stay with this rank.
void Accelerator::run_backward(const at::Tensor& loss, BackwardOptions options) {
  prepared_.reducers.before_pass();
  scaled(loss).backward({}, options.retain_graph || options.create_graph, options.create_graph);
}

// One whose gradients are reduced, unless ranks train on their own; buffers become rank `main`'s.
void Accelerator::reduce_backward(const at::Tensor& loss, BackwardOptions options, int main) {
  if (context_.gradients.local_sgd) {
    run_backward(loss, options);
  } else if (nn::Recording* recording = context_.gradients.records()) {
    run_backward(loss, options);
    record_reduction(*recording);
  } else {
    prepared_.reducers.before_pass();
    prepared_.reducers.begin_pass();
    scaled(loss).backward({}, options.retain_graph || options.create_graph, options.create_graph);
    prepared_.reducers.finish_pass(main);
  }
  if (context_.gradients.inside_window) return;
  begin_window_of_gradients();
  if (context_.follower) context_.follower->after_window();
}

void Accelerator::begin_window_of_gradients() {
  for (const auto& reducer : prepared_.reducers) reducer->begin_window();
}

// The rank whose buffers all shall have after a reduction: the first that has not ended its part of a join.
int Accelerator::main_of_pass(JoinState mine) { return reductions_in_join_ ? meet_in_join(mine) : 0; }

// What a sum over items is multiplied by, so that the mean over the ranks becomes the mean over the items of all ranks.
double Accelerator::factor_over_items(double items) {
  if (context_.gradients.local_sgd) return items > 0 ? 1 / items : 0;
  const double all_items = reduce(at::scalar_tensor(items, at::kDouble)).item<double>();
  if (all_items == 0) throw DataError("an accumulation window without a single item on any rank has no mean gradient");
  return world_size() / all_items;
}

void Accelerator::run_locally(int steps, const std::function<void(nn::LocalSgd&)>& body) {
  if (context_.gradients.local_sgd) throw ConfigError("local_sgd within local_sgd");
  if (reductions_in_join_) throw ConfigError("local_sgd within join_uneven_inputs, whose ranks take different steps");
  for_each_sharded(&optim::ShardedOptimizer::pause);
  {
    const FlagScope alone(context_.gradients.local_sgd, true);
    nn::LocalSgd local(prepared_.reducers, context_.gradients, steps);
    body(local);
    local.average();
  }
  for_each_sharded(&optim::ShardedOptimizer::resume);
}

void Accelerator::check_between_updates() const {
  const GradientState& state = context_.gradients;
  if (state.window_length > 0 && !(state.inside_window && state.sync_gradients))
    throw ConfigError(
        "the accumulation window is open, and its gradients are no part of a state: save or load it in or "
        "after the micro-batch that closes the window (sync_gradients())");
  if (reductions_in_join_ || state.local_sgd)
    throw ConfigError("within join_uneven_inputs and local_sgd ranks differ: save or load the state outside");
}

std::string Accelerator::save_state(const std::string& directory, const SaveStateOptions& options) {
  check_between_updates();
  return checkpoints_->save(directory, options);
}

// As save_state; `written` hears how a save in the background has ended, which concerns nobody else then.
std::string Accelerator::save_for_session(const std::string& directory, const SaveStateOptions& options,
                                          const SaveWritten& written) {
  check_between_updates();
  return checkpoints_->save(directory, options, written);
}

std::string Accelerator::load_state(const std::string& directory, const LoadStateOptions& options) {
  check_between_updates();
  return checkpoints_->load(directory, options);
}

void Accelerator::wait_for_saves() {
  on_main_for_all(*this, [this] { finish_saving(); });
}

void Accelerator::finish_saving() { checkpoints_->finish_saving(); }

void Accelerator::register_state_object(StateObject object) {
  checkpoints_->registered().objects.push_back(std::move(object));
}

void Accelerator::register_state_hooks(StateHooks hooks) {
  checkpoints_->registered().hooks.push_back(std::move(hooks));
}

void Accelerator::synchronize_rng_states(const std::vector<data::RngType>& types) {
  for (const data::RngType type : types) {
    if (type == data::RngType::generator) continue;
    at::Generator* generator = type == data::RngType::cpu ? &context_.generators.cpu : context_.cuda_generator();
    if (!generator) continue;
    at::Tensor state = generator->get_state();
    context_.communicator->broadcast(state, 0);
    generator->set_state(state);
  }
}

std::function<void()> Accelerator::rng_synchronisation() {
  const auto& types = context_.state->config.data_loader.rng_types;
  const bool nothing_to_do =
      std::all_of(types.begin(), types.end(), [](data::RngType type) { return type == data::RngType::generator; });
  if (nothing_to_do) return {};
  return [this, types] { synchronize_rng_states(types); };
}

}  // namespace tandem
