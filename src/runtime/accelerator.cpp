#include "tandem/runtime/accelerator.h"

#include "checkpoint/on_all_ranks.h"
#include "runtime/local_training.h"
#include "runtime/rank_training.h"
#include "runtime/step_observer.h"

namespace tandem {

Accelerator::Accelerator(RankTraining& training) : Rank(training.context), training_(training) {}

nn::AccumulationWindow& Accelerator::window() { return context_.window; }

const GradientState& Accelerator::gradient_state() const { return context_.window; }

bool Accelerator::stop_requested() const { return context_.observer && context_.observer->stop_requested(); }

void Accelerator::set_total_steps(std::int64_t steps) {
  if (context_.observer) context_.observer->set_total_steps(steps);
}

// ---- a training step

void Accelerator::backward(const at::Tensor& loss, BackwardOptions options) { training_.passes.run(loss, options); }

void Accelerator::backward(const at::Tensor& loss_sum, double items, BackwardOptions options) {
  training_.passes.run(loss_sum, items, options);
}

void Accelerator::run_unevenly(const std::function<void()>& body) { training_.join.run(body); }

void Accelerator::run_locally(int steps, const std::function<void(nn::LocalSgd&)>& body) {
  train_locally(context_, training_.parts, training_.updates, training_.join, steps, body);
}

at::Tensor Accelerator::clip_grad_norm_(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type) {
  return training_.clipping.clip_norm(parameters, max_norm, norm_type);
}

std::optional<double> Accelerator::window_mean(double value, double weight) {
  return training_.means.add(value, weight);
}

std::optional<double> Accelerator::window_mean(const at::Tensor& value, double weight) {
  return training_.means.add(value.item<double>(), weight);
}

void Accelerator::clip_grad_value_(const std::vector<at::Tensor>& parameters, double limit) {
  training_.clipping.clip_values(parameters, limit);
}

std::unique_ptr<detail::StepGraph> Accelerator::make_step_graph(const CompileStepOptions& options) {
  return training_.recorder.make_graph(options);
}

// ---- mixed precision

nn::AutocastScope Accelerator::autocast() const {
  training_.warnings.note_autocast();
  return nn::AutocastScope(device().type(), context_.config().mixed_precision);
}

optim::GradScaler* Accelerator::grad_scaler() { return training_.parts.scaler ? &*training_.parts.scaler : nullptr; }

void Accelerator::unscale_gradients() { training_.clipping.unscale_all(); }

void Accelerator::unscale_gradients(const optim::AcceleratedOptimizer& optimizer) {
  training_.clipping.unscale(optimizer);
}

bool Accelerator::optimizer_step_was_skipped() const { return training_.step_was_skipped(nullptr); }

// ---- files

void Accelerator::save_module(const torch::nn::Module* module, const std::string& directory,
                              const io::ModelFileOptions& options) {
  training_.save_model(module, directory, options);
}

void Accelerator::load_module(const std::shared_ptr<torch::nn::Module>& module, const std::string& directory) {
  training_.load_model(module, directory);
}

std::string Accelerator::save_state(const std::string& directory, const SaveStateOptions& options) {
  return training_.save_state(directory, options);
}

std::string Accelerator::load_state(const std::string& directory, const LoadStateOptions& options) {
  return training_.load_state(directory, options);
}

void Accelerator::wait_for_saves() {
  on_main_for_all(*context_.group, rank(), [this] { training_.checkpoints.finish_saving(); });
}

void Accelerator::register_state_object(StateObject object) {
  training_.checkpoints.registered().objects.push_back(std::move(object));
}

void Accelerator::register_state_hooks(StateHooks hooks) {
  training_.checkpoints.registered().hooks.push_back(std::move(hooks));
}

// ---- control

void Accelerator::synchronize_rng_states(const std::vector<data::RngType>& types) {
  training_.synchronize_generators(types);
}

std::string Accelerator::memory_summary() const { return training_.memory_summary(); }

}  // namespace tandem
