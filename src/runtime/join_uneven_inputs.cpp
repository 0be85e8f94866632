// Ranks that take different numbers of steps.
#include <algorithm>

#include <ATen/Functions.h>

#include "runtime/step_follower.h"
#include "runtime/training_parts.h"
#include "tandem/core/error.h"
#include "tandem/optim/state_dict.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {

void Accelerator::run_unevenly(const std::function<void()>& body) {
  begin_join();
  try {
    body();
    answer_until_all_have_ended();
    take_over_from_last();
  } catch (...) {
    reductions_in_join_.reset();  // a body that catches it is in no join; ranks go on with weights of their own
    throw;
  }
}

void Accelerator::begin_join() {
  if (context_.gradients.local_sgd) throw ConfigError("join_uneven_inputs within local_sgd, which reduces no gradient");
  if (reductions_in_join_) throw ConfigError("join_uneven_inputs within join_uneven_inputs");
  if (context_.state->config.gradient_reducer.static_graph)
    throw ConfigError("join_uneven_inputs with static_graph, which promises that all passes are alike; turn it off");
  go_on_apart();  // ranks step as often as they like
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
    if (first >= 0 && state != answered_)  // on all ranks, also those that have ended
      throw ConfigError("ranks use different forms of backward within join_uneven_inputs");
    first = peer;
    answered_ = state;
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
    // What the unfinished window of this rank has accumulated goes in with the first of these reductions; what has been
    // reduced before is the others' as well, and counts as zero.
    for (const auto& reducer : prepared_.reducers) reducer->keep_unreduced();
    if (answered_ == JoinState::reduces_items)
      scale_window(factor_over_items(context_.gradients.items.value_or(0), /*of_all_ranks=*/true));
    prepared_.reducers.begin_pass();
    prepared_.reducers.finish_pass(main);
    context_.gradients.begin_window();
    begin_window_of_gradients();
    for (const auto& reducer : prepared_.reducers) reducer->clear_gradients();
  }
  if (context_.follower) context_.follower->come_back();
}

void Accelerator::take_over_from_last() {
  const auto reductions = gather_objects(*reductions_in_join_);
  reductions_in_join_.reset();
  const auto last = static_cast<int>(std::max_element(reductions.begin(), reductions.end()) - reductions.begin());
  for (const auto& reducer : prepared_.reducers) reducer->broadcast(last);
  for (auto& scheduler : prepared_.alive_schedulers()) scheduler.catch_up(broadcast_object(scheduler.updates(), last));
  // After the schedulers, so that the learning rates are those of the state.
  for (auto& optimizer : prepared_.alive_optimizers()) {
    // Copied before the next call, in which the last rank may go on.
    const optim::SaveOptions known{.its_class = optimizer.its_class(), .has_stepped = optimizer.updates() > 0};
    const c10::IValue state =
        broadcast_object(rank() == last ? optim::state_dict(optimizer.inner(), {}, known) : c10::IValue(), last);
    if (rank() != last) optim::prepare_load(optimizer.inner(), state)();
    const auto [updates, skipped] =
        broadcast_object(std::pair(optimizer.updates(), optimizer.step_was_skipped()), last);
    optimizer.set_updates(updates, skipped);
  }
  if (prepared_.scaler) prepared_.scaler->load_state(broadcast_object(prepared_.scaler->state(), last));
  go_on_together();
}

}  // namespace tandem
