#include "tandem/runtime/accelerator.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "runtime/step_follower.h"
#include "tandem/core/error.h"

namespace tandem {
std::shared_ptr<nn::GradientReducer> Accelerator::reducer_of(const std::shared_ptr<torch::nn::Module>& module) {
  auto reducer = reducers_.find(*module);
  if (reducer && !reducer->added_parameter()) return reducer;
  const LaunchConfig& config = context_.state->config;
  if (config.device_placement) module->to(device());
  if (reducer) {
    reducer->update();
    return reducer;
  }
  nn::GradientReducerOptions options = config.gradient_reducer;
  options.check_finite = options.check_finite && !scaler_;
  reducer = std::make_shared<nn::GradientReducer>(module, *context_.communicator, *context_.group, options);
  reducers_.add(reducer);
  return reducer;
}

std::unique_ptr<optim::ShardedOptimizer> Accelerator::sharded(torch::optim::Optimizer& optimizer) {
  const Sharding sharding = context_.state->config.sharding;
  const bool automatic = sharding == Sharding::automatic;
  if (world_size() == 1 || sharding == Sharding::none || (automatic && !device().is_cpu())) return nullptr;
  using Weights = optim::ShardedOptimizer::Weights;
  auto sharded = std::make_unique<optim::ShardedOptimizer>(optimizer, *context_.communicator, *context_.group,
                                                           reducers_, automatic ? Weights::shared : Weights::own);
  if (context_.gradients.local_sgd || reductions_in_join_) sharded->pause();
  return sharded;
}

void Accelerator::for_each_sharded(void (optim::ShardedOptimizer::*action)()) {
  for (const auto& observer : optimizers_)
    if (auto optimizer = observer.lock(); optimizer && optimizer->sharded()) (optimizer->sharded()->*action)();
}

bool Accelerator::stop_requested() const { return context_.follower && context_.follower->stops(); }

void Accelerator::set_total_steps(std::int64_t steps) {
  if (context_.follower) context_.follower->set_total_steps(steps);
}

std::vector<std::shared_ptr<torch::nn::Module>> Accelerator::prepared_modules() const {
  std::vector<std::shared_ptr<torch::nn::Module>> modules;
  for (const auto& reducer : reducers_) modules.push_back(reducer->module());
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
  if (scaler_ && state.window_length == 0) scaler_->begin_iteration();
  state.begin_micro_batch(close);
  if (state.window_length == 1) begin_window_of_gradients();
  // The micro-batches before this one were divided by num_steps; a window that ends early is shorter.
  if (state.sync_gradients && state.window_length > 1 && state.window_length < state.num_steps && !state.items)
    scale_window(static_cast<double>(state.num_steps) / state.window_length);
}

void Accelerator::scale_window(double factor) {
  for (const auto& reducer : reducers_) reducer->scale_window(factor);
}

// `loss` as autograd is to see it.
at::Tensor Accelerator::scaled(const at::Tensor& loss) {
  if (!scaler_) return loss;
  if (!context_.gradients.inside_window && scaler_->has_stepped()) scaler_->begin_iteration();
  return scaler_->scale(loss);
}

void Accelerator::backward(const at::Tensor& loss, BackwardOptions options) {
  const trace::Range range(trace::Event::backward);
  GradientState& state = context_.gradients;
  context_.group->token().check();
  if (state.items) throw ConfigError("backward(loss) after backward(loss_sum, items) in one accumulation window");
  if (context_.follower) context_.follower->after_backward(loss);
  const at::Tensor mean = state.divisor() > 1 ? loss / state.divisor() : loss;
  if (!state.sync_gradients && !state.trigger_sync) return run_backward(mean, options);
  reduce_backward(mean, options, main_of_pass(JoinState::reduces_mean));
}

void Accelerator::backward(const at::Tensor& loss_sum, double items, BackwardOptions options) {
  const trace::Range range(trace::Event::backward);
  GradientState& state = context_.gradients;
  context_.group->token().check();
  if (state.window_length > 1 && !state.items)
    throw ConfigError("backward(loss_sum, items) after backward(loss) in one accumulation window");
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
  reducers_.before_pass();
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
    reducers_.before_pass();
    reducers_.begin_pass();
    scaled(loss).backward({}, options.retain_graph || options.create_graph, options.create_graph);
    reducers_.finish_pass(main);
  }
  if (context_.gradients.inside_window) return;
  begin_window_of_gradients();
  if (context_.follower) context_.follower->after_window();
}

void Accelerator::begin_window_of_gradients() {
  for (const auto& reducer : reducers_) reducer->begin_window();
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

void Accelerator::check_may_be_local() const {
  if (context_.gradients.local_sgd) throw ConfigError("local_sgd within local_sgd");
  if (reductions_in_join_) throw ConfigError("local_sgd within join_uneven_inputs, whose ranks take different steps");
}

void Accelerator::begin_join() {
  if (context_.gradients.local_sgd) throw ConfigError("join_uneven_inputs within local_sgd, which reduces no gradient");
  if (reductions_in_join_) throw ConfigError("join_uneven_inputs within join_uneven_inputs");
  for_each_sharded(&optim::ShardedOptimizer::pause);  // ranks step as often as they like
  reductions_in_join_ = 0;
}

// Returns the first rank that has not ended; -1 when all have.
int Accelerator::meet_in_join(JoinState mine) {
  const trace::Range range(trace::Event::collective);
  const comm::CallRecord record{.operation = comm::Operation::join_uneven_inputs};
  const auto states = context_.group->meet(rank(), record, static_cast<std::uint64_t>(mine));
  int first = -1;
  for (int peer = world_size() - 1; peer >= 0; --peer) {
    const auto state = static_cast<JoinState>(states[static_cast<std::size_t>(peer)]);
    if (state == JoinState::has_ended) continue;
    first = peer;
    if (mine == JoinState::has_ended)
      answered_ = state;
    else if (state != mine)
      throw ConfigError("ranks use different forms of backward within join_uneven_inputs");
  }
  if (mine == JoinState::reduces_mean || mine == JoinState::reduces_items) *reductions_in_join_ += 1;
  return first;
}

void Accelerator::answer_until_all_have_ended() {
  if (context_.follower) context_.follower->step_aside();
  for (int main = 0; (main = meet_in_join(JoinState::has_ended)) >= 0;) {
    if (answered_ == JoinState::agrees_on_step) {
      at::Tensor nothing_found = at::zeros({}, at::dtype(at::kFloat).device(device()));
      context_.communicator->all_reduce(nothing_found, comm::ReduceOp::max);
      continue;
    }
    // What the unfinished window of this rank has accumulated goes in with the first of these reductions.
    if (answered_ == JoinState::reduces_items) scale_window(factor_over_items(context_.gradients.items.value_or(0)));
    reducers_.begin_pass();
    reducers_.finish_pass(main);
    context_.gradients.begin_window();
    begin_window_of_gradients();
    for (const auto& reducer : reducers_) reducer->clear_gradients();
  }
  if (context_.follower) context_.follower->come_back();
}

void Accelerator::take_over_from_last() {
  const auto reductions = gather_objects(*reductions_in_join_);
  reductions_in_join_.reset();
  const auto last = static_cast<int>(std::max_element(reductions.begin(), reductions.end()) - reductions.begin());
  for (const auto& reducer : reducers_) reducer->broadcast(last);
  for (const auto& observer : schedulers_)
    if (auto scheduler = observer.lock()) scheduler->catch_up(broadcast_object(scheduler->updates(), last));
  // After the schedulers, so that the learning rates are those of the state.
  for (const auto& observer : optimizers_) {
    auto optimizer = observer.lock();
    if (!optimizer) continue;
    // Copied before the next call, in which the last rank may go on.
    const c10::IValue state =
        broadcast_object(rank() == last ? optim::state_dict(optimizer->inner()) : c10::IValue(), last);
    if (rank() != last) optim::prepare_load(optimizer->inner(), state)();
    const auto [updates, skipped] =
        broadcast_object(std::pair(optimizer->updates(), optimizer->step_was_skipped()), last);
    optimizer->set_updates(updates, skipped);
  }
  if (scaler_) scaler_->load_state(broadcast_object(scaler_->state(), last));
  for_each_sharded(&optim::ShardedOptimizer::resume);
}

void Accelerator::synchronize_rng_states(const std::vector<data::RngType>& types) {
  for (const data::RngType type : types) {
    if (type == data::RngType::generator) continue;
    at::Generator* generator = type == data::RngType::cpu ? &context_.generators.cpu : cuda_generator();
    if (!generator) continue;
    at::Tensor state = generator->get_state();
    context_.communicator->broadcast(state, 0);
    generator->set_state(state);
  }
}

// This rank's on its GPU; null for a CPU rank.
at::Generator* Accelerator::cuda_generator() {
  const auto index = static_cast<std::size_t>(std::max<int>(device().index(), 0));
  auto& generators = context_.generators.cuda;
  return device().is_cuda() && index < generators.size() ? &generators[index] : nullptr;
}

std::function<void()> Accelerator::rng_synchronisation() {
  const auto& types = context_.state->config.data_loader.rng_types;
  const bool nothing_to_do =
      std::all_of(types.begin(), types.end(), [](data::RngType type) { return type == data::RngType::generator; });
  if (nothing_to_do) return {};
  return [this, types] { synchronize_rng_states(types); };
}

at::Tensor Accelerator::gather_tensor(const at::Tensor& tensor) {
  auto parts = context_.communicator->all_gather(tensor);
  return tensor.dim() == 0 ? at::stack(parts) : at::cat(parts);
}

at::Tensor Accelerator::clone_for_reduction(const at::Tensor& tensor) {
  return tensor.detach().clone(at::MemoryFormat::Contiguous);
}

at::Tensor Accelerator::pad_tensor(const at::Tensor& tensor, std::int64_t dim, double value, bool pad_first) {
  const bool has_dim = dim < tensor.dim() && dim >= -tensor.dim() && tensor.dim() > 0;
  const std::int64_t size = has_dim ? tensor.size(dim) : 0;
  const auto sizes = gather_objects(size);
  const std::int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  if (!has_dim || longest == size) return tensor;
  auto shape = tensor.sizes().vec();
  shape[static_cast<std::size_t>(dim < 0 ? dim + tensor.dim() : dim)] = longest - size;
  const at::Tensor padding = at::full(shape, value, tensor.options());
  return pad_first ? at::cat({padding, tensor}, dim) : at::cat({tensor, padding}, dim);
}

bool Accelerator::check_trigger() {
  const trace::Range range(trace::Event::collective);
  const comm::CallRecord record{.operation = comm::Operation::check_trigger};
  const auto triggers = context_.group->meet(rank(), record, std::exchange(trigger_, false) ? 1 : 0);
  return std::any_of(triggers.begin(), triggers.end(), [](std::uint64_t set) { return set != 0; });
}

Accelerator::Share Accelerator::share_of(std::size_t size, bool padding) const {
  const auto ranks = static_cast<std::size_t>(world_size());
  const auto index = static_cast<std::size_t>(rank());
  const std::size_t longer = size % ranks;  // ranks that get one more
  const std::size_t begin = index * (size / ranks) + std::min(index, longer);
  const std::size_t end = begin + size / ranks + (index < longer ? 1 : 0);
  const std::size_t longest = size / ranks + (longer > 0 ? 1 : 0);
  return {begin, end, padding && size > 0 ? longest - (end - begin) : 0};
}

at::Tensor Accelerator::split_between_ranks(const at::Tensor& rows, bool padding) const {
  if (rows.dim() == 0) throw DataError("split_between_ranks needs a tensor with rows (dim 0), got a 0-dim tensor");
  const auto [begin, end, repeat] = share_of(static_cast<std::size_t>(rows.size(0)), padding);
  const at::Tensor share = rows.slice(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
  if (repeat == 0) return share;
  return at::cat({share, rows.slice(0, -1).repeat_interleave(static_cast<std::int64_t>(repeat), 0)});
}

void Accelerator::check_rank(int rank, const char* operation) const {
  if (rank < 0 || rank >= world_size())
    throw CollectiveError(std::string(operation) + " from rank " + std::to_string(rank) + "; ranks are 0 to " +
                          std::to_string(world_size() - 1));
}

void Accelerator::write_out(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace tandem
