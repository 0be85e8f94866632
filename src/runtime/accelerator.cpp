#include "tandem/runtime/accelerator.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "backend/rank_memory.h"
#include "data/prepare.h"
#include "nn/same_models.h"
#include "optim/same_optimizers.h"
#include "runtime/checkpoints.h"
#include "runtime/on_all_ranks.h"
#include "runtime/profile_session.h"
#include "runtime/step_follower.h"
#include "tandem/comm/agree.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

// Whether this rank has added to a gradient of the optimizer since the last reduction.
bool has_local_gradients(const nn::GradientReducers& models, const torch::optim::Optimizer& optimizer) {
  if (std::none_of(models.begin(), models.end(), [](const auto& model) { return model->has_local_gradients(); }))
    return false;
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params())
      if (const auto* const model = models.find(parameter); model && model->has_local_gradient(parameter)) return true;
  return false;
}

}  // namespace

Accelerator::Accelerator(RankContext& context)
    : RankHandle(context), checkpoints_(std::make_unique<Checkpoints>(*this, context, prepared_)) {
  const LaunchConfig& config = context_.state->config;
  if (config.mixed_precision == Precision::fp16)
    prepared_.scaler.emplace(config.grad_scaler, device(), [this](at::Tensor& found_inf) { agree_on_step(found_inf); });
}

Accelerator::~Accelerator() = default;

std::shared_ptr<nn::GradientReducer> Accelerator::reducer_of(const std::shared_ptr<torch::nn::Module>& module) {
  auto reducer = module ? prepared_.reducers.find(*module) : nullptr;
  if (reducer && !reducer->added_parameter()) return reducer;
  const LaunchConfig& config = context_.state->config;
  nn::check_same_models(*context_.group, rank(), module.get());
  comm::check_together(*context_.group, rank(), {.operation = comm::Operation::prepare}, [&] {
    if (config.device_placement) module->to(device());
  });
  if (reducer) {
    reducer->update();
    return reducer;
  }
  nn::GradientReducerOptions options = config.gradient_reducer;
  options.check_finite = options.check_finite && !prepared_.scaler;
  reducer = std::make_shared<nn::GradientReducer>(module, *context_.communicator, *context_.group, options);
  prepared_.reducers.add(reducer);
  lend_weights(reducer->weights());
  return reducer;
}

void Accelerator::check_optimizer(const torch::optim::Optimizer& optimizer) {
  optim::check_same_optimizers(*context_.group, rank(), optimizer, prepared_.reducers);
  looked_at_.erase(&optimizer);  // another one may have been there before
}

// Of parameters that no prepared model has, whose gradients nobody averages: of all of them where the model was not
// prepared. Looks once, at an optimizer's first update.
void Accelerator::tell_of_foreign_parameters(const torch::optim::Optimizer& optimizer) {
  if (world_size() == 1 || !context_.state->config.on_warning || !looked_at_.insert(&optimizer).second) return;
  std::size_t index = 0;
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params()) {
      index += 1;
      if (!parameter.requires_grad() || prepared_.reducers.find(parameter)) continue;
      if (is_main())
        context_.state->config.on_warning(c10::str(
            "parameter ", index - 1, " of an optimizer, ", parameter.scalar_type(), parameter.sizes(),
            ", is of no prepared model: its gradient is not averaged, and each rank trains it alone; prepare the model "
            "that has it"));
      return;
    }
}

void Accelerator::after_update(const torch::optim::Optimizer& optimizer) {
  tell_of_foreign_parameters(optimizer);
  if (context_.gradients.local_sgd || reductions_in_join_) return;  // ranks take different steps
  const bool hears =
      is_main() && world_size() > 1 && context_.state->config.on_warning && !looked_at_.contains(nullptr);
  if (hears && !context_.gradients.no_sync && has_local_gradients(prepared_.reducers, optimizer)) {
    looked_at_.insert(nullptr);
    context_.state->config.on_warning(
        "an optimizer has stepped on gradients that were not averaged over the ranks, which loss.backward() does not "
        "do, nor a pass within no_sync: write accelerator.backward(loss). The ranks train on with different weights");
  }
  for (const auto& reducer : prepared_.reducers) reducer->updated_by(optimizer);
}

void Accelerator::lend_weights(nn::SharedWeights& weights) {
  const Sharding sharding = context_.state->config.sharding;
  if (!device().is_cpu() || sharding == Sharding::none) return;
  weights.lend(sharding == Sharding::automatic ? nn::Lending::shared : nn::Lending::own);
  if (context_.gradients.local_sgd || reductions_in_join_) weights.separate();
  free_rank_memory();  // of the rank's own copy
}

// Until `go_on_together`, ranks update their weights by themselves.
void Accelerator::go_on_apart() {
  for (const auto& reducer : prepared_.reducers) reducer->weights().separate();
  for_each_sharded(&optim::ShardedOptimizer::pause);
}

void Accelerator::go_on_together() {
  for (const auto& reducer : prepared_.reducers) reducer->weights().share();
  for_each_sharded(&optim::ShardedOptimizer::resume);
}

std::unique_ptr<optim::ShardedOptimizer> Accelerator::sharded(torch::optim::Optimizer& optimizer) {
  const Sharding sharding = context_.state->config.sharding;
  const bool wanted = sharding == Sharding::optimizer || (sharding == Sharding::automatic && device().is_cpu());
  if (world_size() == 1 || !wanted) return nullptr;
  auto sharded = std::make_unique<optim::ShardedOptimizer>(optimizer, *context_.communicator, *context_.group,
                                                           prepared_.reducers, context_.state->config.on_warning);
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

std::shared_ptr<data::LoaderBase> Accelerator::prepare_loader(const data::DataLoaderOptions& options,
                                                              const data::detail::AnyDataset& dataset) {
  const LaunchConfig& config = context_.state->config;
  std::function<bool(const data::EpochPosition&)> before_batch;
  if (StepFollower* const follower = context_.follower)
    before_batch = [follower](const data::EpochPosition& position) { return follower->before_batch(position); };
  data::LoaderContext context{.rank = rank(),
                              .group = context_.group,
                              .active = &context_.gradients.loaders,
                              .device = config.device_placement ? std::optional(device()) : std::nullopt,
                              .non_blocking = config.data_loader.non_blocking,
                              .on_epoch = rng_synchronisation(),
                              .before_batch = std::move(before_batch)};
  auto loader = data::prepare_loader(options, dataset, config.data_loader, config.seed, std::move(context));
  prepared_.loaders.emplace_back(loader);
  return loader;
}

void Accelerator::begin_micro_batch(bool close) {
  context_.group->token().check();  // a body may make no other call that waits
  GradientState& state = context_.gradients;
  if (state.in_closure)
    throw ConfigError("accumulate() within the closure of step(closure); open it around the step instead");
  if (state.inside_window)
    throw ConfigError(
        "accumulate() within accumulate(): a micro-batch is that of all prepared models; name them in one call, "
        "accumulate(a, b)");
  if (context_.follower) context_.follower->before_micro_batch();
  // The scale stays the same within a window, whose gradients add up.
  if (prepared_.scaler && state.window_length == 0) prepared_.scaler->begin_iteration();
  state.begin_micro_batch(close);
  if (state.window_length == 1) {
    begin_window_of_gradients();
    state.has_mean = false;  // of passes before it
  }
  prepared_.reducers.keep_apart(!state.closes_window());
  // The micro-batches before this one were divided by num_steps; a window that ends early is shorter.
  if (state.closes_window() && state.window_length > 1 && state.window_length < state.num_steps && !state.items)
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
  if (!prepared_.scaler->has_rescaled()) {
    std::vector<const torch::optim::Optimizer*> optimizers;
    for (const auto& optimizer : prepared_.alive_optimizers()) optimizers.push_back(&optimizer.inner());
    prepared_.scaler->rescale_kept(optimizers);
  }
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
  prepared_.reducers.keep_apart(!state.closes_window() || (reductions_in_join_ && !state.reduces()));
  if (state.reduces())
    reduce_backward(mean, options, main_of_pass(JoinState::reduces_mean));
  else
    run_backward(mean, options);
  if (!state.pass_is_window()) return;
  state.has_mean = false;
  end_window_of_pass();
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
  prepared_.reducers.keep_apart(!state.pass_ends_sums());
  if (!state.pass_ends_sums()) {
    if (!state.reduces()) return run_backward(loss_sum, options);
    return reduce_backward(loss_sum, options, main_of_pass(JoinState::reduces_mean));
  }
  const bool reduces = state.reduces();
  const int main = reduces ? main_of_pass(JoinState::reduces_items) : 0;
  const double factor = factor_over_items(*state.items, reduces);
  state.loss_factor = factor;
  scale_window(factor);
  if (reduces)
    reduce_backward(loss_sum * factor, options, main);
  else
    run_backward(loss_sum * factor, options);
  state.items_reduced = true;
  if (!state.pass_is_window()) return;
  state.begin_window();
  end_window_of_pass();
}

// A backward pass whose gradients stay with this rank.
void Accelerator::run_backward(const at::Tensor& loss, BackwardOptions options) {
  prepared_.reducers.before_pass();
  scaled(loss).backward({}, options.retain_graph || options.create_graph, options.create_graph);
}

// One whose gradients are reduced; buffers become rank `main`'s.
void Accelerator::reduce_backward(const at::Tensor& loss, BackwardOptions options, int main) {
  tell_of_raw_forward();
  if (nn::Recording* recording = context_.gradients.records()) {
    run_backward(loss, options);
    return record_reduction(*recording);
  }
  prepared_.reducers.before_pass();
  const at::Tensor as_autograd_sees_it = scaled(loss);
  prepared_.reducers.begin_pass();
  as_autograd_sees_it.backward({}, options.retain_graph || options.create_graph, options.create_graph);
  prepared_.reducers.finish_pass(main);
}

// Ends the window that a backward pass outside of accumulate() is.
void Accelerator::end_window_of_pass() {
  begin_window_of_gradients();
  if (context_.follower) context_.follower->after_window();
}

// Under mixed precision: of a model whose gradients have come though nobody has called it, nor made a scope of
// autocast(): its forward was called on the module. Looks at what the passes before have reached.
void Accelerator::tell_of_raw_forward() {
  const LaunchConfig& config = context_.state->config;
  if (config.mixed_precision == Precision::no || !config.on_warning || autocast_used_ || told_of_raw_forward_) return;
  // A part of another model gets gradients through that one.
  const auto was_called = [this](const at::Tensor& parameter) {
    return std::any_of(prepared_.reducers.begin(), prepared_.reducers.end(),
                       [&](const auto& other) { return other->was_called() && other->has(parameter); });
  };
  for (const auto& reducer : prepared_.reducers) {
    const auto& parameters = reducer->parameters();
    if (parameters.empty() || was_called(parameters.front().second)) continue;
    const auto trained = std::count_if(parameters.begin(), parameters.end(),
                                       [](const auto& named) { return named.second.requires_grad(); });
    if (static_cast<std::ptrdiff_t>(reducer->unused_parameters().size()) == trained) continue;
    told_of_raw_forward_ = true;
    if (is_main())
      config.on_warning(
          "a model is trained in full precision although the launch asks for mixed precision: its forward was called "
          "on the module itself; call what prepare returned, model(x), or do it within autocast()");
    return;
  }
}

void Accelerator::begin_window_of_gradients() {
  for (const auto& reducer : prepared_.reducers) reducer->begin_window();
}

// The rank whose buffers all shall have after a reduction: the first that has not ended its part of a join.
int Accelerator::main_of_pass(JoinState mine) { return reductions_in_join_ ? meet_in_join(mine) : 0; }

// What a sum over items is multiplied by: so that the mean over the ranks becomes the mean over the items of all ranks,
// or this rank's sum the mean over its own.
double Accelerator::factor_over_items(double items, bool of_all_ranks) {
  if (!of_all_ranks) return items > 0 ? 1 / items : 0;
  const comm::CallRecord record{.operation = comm::Operation::all_reduce};
  double all_items = 0;
  for (const std::uint64_t of_rank : context_.group->meet(rank(), record, std::bit_cast<std::uint64_t>(items)))
    all_items += std::bit_cast<double>(of_rank);
  if (all_items == 0) throw DataError("an accumulation window without a single item on any rank has no mean gradient");
  return world_size() / all_items;
}

void Accelerator::run_locally(int steps, const std::function<void(nn::LocalSgd&)>& body) {
  if (context_.gradients.local_sgd) throw ConfigError("local_sgd within local_sgd");
  if (reductions_in_join_) throw ConfigError("local_sgd within join_uneven_inputs, whose ranks take different steps");
  const std::string call = "local_sgd with " + std::to_string(steps) + " steps between averages";
  comm::agree(*context_.group, rank(), {.operation = comm::Operation::local_sgd},
              {.signature = static_cast<std::uint64_t>(steps),
               .refusal = comm::refusal_of([&] {
                 if (steps < 1) throw ConfigError(call + "; use 1 or more");
               }),
               .describe = [&] { return call; }});
  go_on_apart();
  {
    const FlagScope alone(context_.gradients.local_sgd, true);
    nn::LocalSgd local(prepared_.reducers, context_.gradients, steps);
    body(local);
    local.average();
  }
  go_on_together();
}

// On all ranks the same, also when the window is open on one only.
void Accelerator::check_between_updates() {
  const GradientState& state = context_.gradients;
  if (reductions_in_join_ || state.local_sgd)  // on all ranks, which do not meet in a join
    throw ConfigError("within join_uneven_inputs and local_sgd ranks differ: save or load the state outside");
  check_on_all(*this, [&] {
    if (state.window_length > 0 && !(state.inside_window && state.closes_window()))
      throw ConfigError(
          "the accumulation window is open, and its gradients are no part of a state: save or load it in or "
          "after the micro-batch that closes the window (sync_gradients())");
  });
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
