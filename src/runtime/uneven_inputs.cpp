#include "runtime/uneven_inputs.h"

#include <algorithm>
#include <bit>

#include <ATen/Functions.h>

#include "optim/state_dict.h"
#include "runtime/exact_training.h"
#include "runtime/step_observer.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::optim {

static std::string to_bytes(const GradScalerState& state) {
  return comm::pack(state.scale, state.growth_factor, state.backoff_factor, state.growth_interval,
                    state.growth_tracker);
}

static void from_bytes(std::string_view bytes, GradScalerState& state) {
  comm::unpack(bytes, state.scale, state.growth_factor, state.backoff_factor, state.growth_interval,
               state.growth_tracker);
}

}  // namespace tandem::optim

namespace tandem {

void Join::run(const std::function<void()>& body) {
  begin();
  try {
    body();
    answer_until_all_have_ended();
    take_over_from_last();
  } catch (...) {
    reductions_.reset();  // a body that catches it is in no join; ranks go on with weights of their own
    updates_.stay_apart();
    throw;
  }
}

void Join::begin() {
  if (context_.window.trains_alone())
    throw ConfigError("join_uneven_inputs within local_sgd, which reduces no gradient");
  if (active()) throw ConfigError("join_uneven_inputs within join_uneven_inputs");
  if (context_.config().gradient_reducer.static_graph)
    throw ConfigError("join_uneven_inputs with static_graph, which promises that all passes are alike; turn it off");
  updates_.begin_apart();  // ranks step as often as they like
  reductions_ = 0;
}

int Join::meet(Turn mine) {
  if (!active()) return 0;
  const trace::Range range(trace::Event::collective);
  const comm::CallRecord record{.operation = "join_uneven_inputs"};
  const auto turns = context_.group->meet(context_.rank, record, static_cast<std::uint64_t>(mine));
  int first = -1;  // all have ended
  for (int peer = context_.world_size() - 1; peer >= 0; --peer) {
    const auto turn = static_cast<Turn>(turns[static_cast<std::size_t>(peer)]);
    if (turn == Turn::has_ended) continue;
    if (first >= 0 && turn != answered_)  // on all ranks, also those that have ended
      throw ConfigError("ranks use different forms of backward within join_uneven_inputs");
    first = peer;
    answered_ = turn;
  }
  if (mine == Turn::reduces_mean || mine == Turn::reduces_items) *reductions_ += 1;
  return first;
}

void Join::answer_until_all_have_ended() {
  if (context_.observer) context_.observer->step_aside();
  for (int main = 0; (main = meet(Turn::has_ended)) >= 0;) {
    if (answered_ == Turn::agrees_on_step) {
      at::Tensor nothing_found = at::zeros({}, at::dtype(at::kFloat).device(context_.device()));
      context_.communicator->all_reduce(nothing_found, comm::ReduceOp::max);
    } else if (answered_ == Turn::exchanges_buffers) {
      exact_->answer_exchange();
    } else {
      answer_reduction(main);
    }
  }
  if (context_.observer) context_.observer->come_back();
}

// What the unfinished window of this rank has accumulated goes in with the first of these reductions; what has been
// reduced before is the others' as well, and counts as zero.
void Join::answer_reduction(int main) {
  if (exact_) {
    exact_->answer_reduction(answered_ == Turn::reduces_items);
  } else {
    for (const auto& reducer : parts_.reducers) reducer->keep_unreduced();
    if (answered_ == Turn::reduces_items) parts_.scale_window(factor_over_items(context_, context_.window.items()));
    parts_.reducers.begin_pass();
    parts_.reducers.finish_pass(main);
  }
  context_.window.begin();
  parts_.begin_window();
  for (const auto& reducer : parts_.reducers) reducer->clear_gradients();
}

void Join::take_over_from_last() {
  const auto reductions = comm::detail::gather_objects(*context_.group, context_.rank, *reductions_);
  reductions_.reset();
  const auto last = static_cast<int>(std::max_element(reductions.begin(), reductions.end()) - reductions.begin());
  const auto of_last = [&](const auto& mine) {
    return comm::detail::broadcast_object(*context_.group, context_.rank, mine, last);
  };
  // Of the ranks some may have seen their loaders' last step, which closes a window, and others may not.
  context_.window.set_count(of_last(context_.window.count()));
  for (const auto& reducer : parts_.reducers) reducer->broadcast(last);
  for (auto& scheduler : parts_.alive_schedulers()) optim::catch_up(scheduler, of_last(scheduler.updates()));
  // After the schedulers, so that the learning rates are those of the state.
  for (auto& optimizer : parts_.alive_optimizers())
    take_over(optimizer, state_of(optimizer, context_.rank == last), context_, last);
  if (parts_.scaler) parts_.scaler->load_state(of_last(parts_.scaler->state()));
  updates_.end_apart();
}

c10::IValue state_of(const optim::AcceleratedOptimizer& optimizer, bool wanted) {
  const optim::SaveOptions known{.its_class = optim::class_of(optimizer), .has_stepped = optimizer.updates() > 0};
  return wanted ? optim::state_dict(optimizer.inner(), {}, known) : c10::IValue();
}

void take_over(optim::AcceleratedOptimizer& optimizer, const c10::IValue& state, RankContext& context, int root) {
  const auto of_root = [&](const auto& mine) {
    return comm::detail::broadcast_object(*context.group, context.rank, mine, root);
  };
  // Copied before the next call, in which the root may go on.
  const c10::IValue its = of_root(state);
  if (context.rank != root && !its.isNone()) optim::prepare_load(optimizer.inner(), its)();
  const auto [updates, skipped] = of_root(std::pair(optimizer.updates(), optimizer.step_was_skipped()));
  optim::set_updates(optimizer, updates, skipped);
}

double factor_over_items(RankContext& context, double items) {
  const comm::CallRecord record{.operation = "all_reduce", .reduce = comm::ReduceOp::sum};
  double all_items = 0;
  for (const std::uint64_t of_rank : context.group->meet(context.rank, record, std::bit_cast<std::uint64_t>(items)))
    all_items += std::bit_cast<double>(of_rank);
  if (all_items == 0) throw DataError("an accumulation window without a single item on any rank has no mean gradient");
  return context.world_size() / all_items;
}

}  // namespace tandem
