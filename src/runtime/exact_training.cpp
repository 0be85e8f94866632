#include "runtime/exact_training.h"

#include <string>

#include "runtime/exact_trace.h"
#include "runtime/window_means.h"
#include "tandem/core/error.h"

namespace tandem {

ExactTraining::ExactTraining(RankContext& context, TrainingParts& parts, Join& join)
    : context_(context),
      parts_(parts),
      join_(join),
      gradients_(parts.reducers, *context.communicator, *context.group, context.shards_each()),
      buffers_(parts.reducers, *context.communicator),
      items_(static_cast<std::size_t>(context.shards_each()), 0.0) {}

void ExactTraining::check_turn() const {
  const nn::AccumulationWindow& window = context_.window;
  const data::StepInfo* batch = window.loaders().current();
  if (!batch || batch->step < 0 || batch->sub_step == window.sub_step()) return;
  throw ConfigError("in exact mode each batch of a loader is one micro-batch: this one is of logical shard " +
                    std::to_string(batch->sub_step + 1) + " of the " + std::to_string(window.sub_steps()) +
                    " that rank " + std::to_string(context_.rank) +
                    " computes of a global batch, and the turn is that of number " +
                    std::to_string(window.sub_step() + 1) +
                    "; open accumulate() once for each batch, and leave no global batch in its middle");
}

bool ExactTraining::is_last_here() const {
  const data::StepInfo* batch = context_.window.loaders().current();
  return batch && batch->step >= 0 && batch->ends_step();
}

void ExactTraining::begin_micro_batch() {
  const nn::AccumulationWindow& window = context_.window;
  if (window.sub_step() == 0) {
    finish_step();
    if (window.length() == 1) {
      if (trace_) trace_->end_window();
      if (window.awaits_reduction())
        throw ConfigError(
            "the window before has closed without the gradients of its last logical shard, which made no "
            "backward pass; let each shard make one, of a loss of 0 where there is nothing to learn");
      gradients_.begin_window();
    }
  }
  gradients_.begin_micro_batch(window.sub_step(), window.is_last_micro_batch(), window.correction().value_or(1));
  buffers_.begin_micro_batch(window.sub_step(), window.sub_steps());
  choose_generators();
  if (trace_) trace_->begin_micro_batch();
}

// Of a step whose window is open, or which has made no pass.
void ExactTraining::finish_step() {
  if (!exchanges_) return;
  join_.meet(Join::Turn::exchanges_buffers);
  answer_exchange();
}

void ExactTraining::answer_exchange() {
  exchanges_ = false;
  buffers_.exchange();
  buffers_.end_step();
}

void ExactTraining::end_micro_batch() noexcept {
  const nn::AccumulationWindow& window = context_.window;
  if (trace_) trace_->end_micro_batch();
  if (!window.ends_step()) return;
  if (!window.closes_window()) {
    exchanges_ = true;
    return;
  }
  buffers_.end_step();
  gradients_.end_window();
  items_.assign(items_.size(), 0.0);
}

void ExactTraining::before_pass(bool items) {
  const nn::AccumulationWindow& window = context_.window;
  if (!window.in_micro_batch())
    throw ConfigError(
        "exact mode needs to know where a micro-batch begins: open accumulate() around forward, "
        "backward and step");
  if (window.in_closure() || window.trains_alone() || window.reduction().no_sync || window.reduction().trigger)
    throw ConfigError(
        "exact mode has neither no_sync, trigger_sync_in_backward, local_sgd nor step(closure), after "
        "which logical shards would have weights or gradients of their own");
  for (const auto& model : parts_.reducers)
    if (model->has_communication_hook())
      throw ConfigError("a model has a communication hook, which depends on the number of ranks; exact mode has none");
  if (window.is_updated())
    throw ConfigError(
        "a backward pass after optimizer.step() or zero_grad() in one micro-batch: in exact mode a step "
        "is made when all logical shards have made their passes, so make them before it");
  gradients_.before_pass(items ? std::nullopt : std::optional(factor(items)));
  if (trace_) trace_->before_pass();
}

void ExactTraining::after_pass() {
  if (trace_) trace_->after_pass();
  gradients_.after_pass();
  context_.window.note_pass();
  buffers_.after_pass(context_.window.sub_step());
}

void ExactTraining::use_items(double items) { items_[static_cast<std::size_t>(context_.window.sub_step())] += items; }

// What the sum over the shards is multiplied by. Collective with `items`.
double ExactTraining::factor(bool items) {
  if (!items) return 1.0 / context_.logical_ranks();
  const double all = sum_over_shards(context_, "all_reduce", items_);
  if (all == 0) throw DataError("an accumulation window without a single item on any rank has no mean gradient");
  return 1 / all;
}

void ExactTraining::reduce(bool items) {
  join_.meet(items ? Join::Turn::reduces_items : Join::Turn::reduces_mean);
  gradients_.reduce(factor(items));
  context_.window.note_reduction();
  buffers_.exchange();
}

void ExactTraining::answer_reduction(bool items) {
  if (!context_.window.is_open()) gradients_.begin_window();
  gradients_.answer(factor(items));
  buffers_.exchange();
  buffers_.end_step();
  forget_window();
}

void ExactTraining::forget_window() {
  exchanges_ = false;
  gradients_.end_window();
  context_.window.note_reduction();
  items_.assign(items_.size(), 0.0);
}

void ExactTraining::choose_generators() {
  const nn::AccumulationWindow& window = context_.window;
  const data::StepInfo* batch = window.loaders().current();
  int shard = rng::ShardGenerators::kOutside;
  if (window.in_micro_batch())
    shard = window.sub_step();
  else if (batch && batch->step >= 0)
    shard = batch->sub_step;
  context_.shards->use(shard);
}

}  // namespace tandem
