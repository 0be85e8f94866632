#include "checkpoints.h"

#include "warn.h"

namespace train {

Checkpoints::Checkpoints(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs,
                         Records& records, TrainingState& state)
    : accelerator_(accelerator), options_(options), inputs_(inputs), records_(records), state_(state) {
  accelerator_.register_for_checkpointing(state_);
}

bool Checkpoints::begin() {
  if (inputs_.checkpoint) {
    resumed_from_ = accelerator_.load_state(*inputs_.checkpoint, {.optimizer_options = options_.optimizer_options});
    saved_at_ = state_.steps;
  }
  state_.flags = options_.flags;
  state_.classes = inputs_.task->classes();
  state_.description = inputs_.classes;
  state_.data = inputs_.data;
  state_.global_batch = options_.global_batch();
  return inputs_.checkpoint.has_value();
}

Losses Checkpoints::resumed_losses() const {
  if (options_.launch.exact && !state_.epoch_losses.empty())
    return {at::zeros({}, at::device(accelerator_.device())), 0, state_.epoch_losses.front(),
            state_.epoch_batches.front()};
  double sum = 0;
  std::int64_t batches = 0;
  const auto ranks = static_cast<std::size_t>(accelerator_.world_size());
  for (auto r = static_cast<std::size_t>(accelerator_.rank()); r < state_.epoch_losses.size(); r += ranks) {
    sum += state_.epoch_losses[r];
    batches += state_.epoch_batches[r];
  }
  return {at::scalar_tensor(sum, at::dtype(at::kFloat).device(accelerator_.device())), batches};
}

void Checkpoints::save_if_due(bool last, const Losses& epoch_losses) {
  if (options_.launch.checkpoints.directory.empty() || state_.steps == saved_at_) return;
  if (!last && !(options_.save_every && state_.steps % *options_.save_every == 0)) return;
  records_.pause();
  saved_at_ = state_.steps;
  if (options_.launch.exact) {
    state_.epoch_losses = {epoch_losses.sum_of_means};
    state_.epoch_batches = {epoch_losses.windows};
  } else {
    const double sum = epoch_losses.sum.defined() ? epoch_losses.sum.item<double>() : 0.0;
    state_.epoch_losses = accelerator_.gather_objects(sum);
    state_.epoch_batches = accelerator_.gather_objects(epoch_losses.batches);
  }
  // The one before may have failed by now; this one is tried all the same.
  wait();
  failed_.clear();
  warn_if_it_fails([&] {
    saved_to_ = accelerator_.save_state({}, {.background = true});
    records_.saving(state_.steps, saved_to_);
  });
  records_.go_on();
}

void Checkpoints::wait() {
  warn_if_it_fails([&] { accelerator_.wait_for_saves(); });
}

// All ranks fail alike.
void Checkpoints::warn_if_it_fails(const std::function<void()>& save) {
  try {
    save();
  } catch (const tandem::CheckpointError& error) {
    failed_ = error.what();
    saved_to_.clear();
    warn(accelerator_, failed_ + "; training goes on");
  }
}

}  // namespace train
