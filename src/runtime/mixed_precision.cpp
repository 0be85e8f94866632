// Loss scaling, and clipping, which looks at gradients as they are.
#include <algorithm>
#include <unordered_set>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "nn/clip_gradients.h"
#include "runtime/training_parts.h"
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {

// The reduced gradients are the same on all ranks, but an optimizer may have others too: parameters of no prepared
// model, or gradients that a rank has changed itself. A step that only some ranks took would part their weights.
void Accelerator::agree_on_step(at::Tensor& found_inf) {
  if (reductions_in_join_) meet_in_join(JoinState::agrees_on_step);
  context_.communicator->all_reduce(found_inf, comm::ReduceOp::max);
}

void Accelerator::unscale_gradients() {
  for (const auto& optimizer : prepared_.alive_optimizers()) unscale_gradients(optimizer);
}

void Accelerator::unscale_gradients(const optim::AcceleratedOptimizer& optimizer) {
  if (prepared_.scaler && context_.gradients.acts()) prepared_.scaler->unscale_(optimizer.inner());
}

// Of the optimizers that update any of `parameters`; the others may still wait for a backward pass.
void Accelerator::unscale_gradients_of(const std::vector<at::Tensor>& parameters) {
  if (!prepared_.scaler) return;
  std::unordered_set<const void*> wanted;
  for (const at::Tensor& parameter : parameters)
    if (parameter.grad().defined()) wanted.insert(parameter.unsafeGetTensorImpl());
  for (const auto& optimizer : prepared_.alive_optimizers()) {
    std::size_t found = 0;
    for (const auto& group : optimizer.inner().param_groups())
      for (const at::Tensor& parameter : group.params()) found += wanted.erase(parameter.unsafeGetTensorImpl());
    if (found > 0) prepared_.scaler->unscale_(optimizer.inner());
  }
  if (!wanted.empty())
    throw ConfigError("clipping under mixed precision fp16 needs to know whose the gradients are, but " +
                      std::to_string(wanted.size()) +
                      " of them belong to no prepared optimizer; prepare the optimizer that updates these parameters, "
                      "or clip only what a prepared one updates");
}

bool Accelerator::step_was_skipped(const torch::optim::Optimizer* of) const {
  bool any = false;
  for (const auto& optimizer : prepared_.alive_optimizers()) {
    if (&optimizer.inner() == of) return optimizer.step_was_skipped();
    any = any || optimizer.step_was_skipped();
  }
  return any;
}

bool Accelerator::optimizer_step_was_skipped() const { return step_was_skipped(nullptr); }

at::Tensor Accelerator::clip_grad_norm_(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type) {
  context_.group->token().check();
  if (!context_.gradients.acts()) return {};
  const trace::Range range(trace::Event::clip);
  unscale_gradients_of(parameters);
  const auto gradients = nn::reduced_gradients(prepared_.reducers, parameters);
  if (gradients.empty()) return at::zeros({}, at::dtype(at::kFloat).device(device()));
  if (world_size() == 1 && !context_.state->config.fused_optimizers) {
    at::Tensor norm = nn::total_norm_as_torch(gradients, norm_type);
    nn::clip_as_torch(gradients, norm, max_norm);
    return norm;
  }
  at::Tensor norm = nn::total_norm(gradients, norm_type);
  if (clips_together(gradients.front()))
    nn::clip_together(gradients, norm, max_norm, *context_.group, rank());
  else
    nn::clip_each(gradients, norm, max_norm);
  return norm;
}

bool Accelerator::clips_together(const nn::ReducedGradient& first) const {
  const nn::GradientReducerOptions& options = context_.state->config.gradient_reducer;
  return world_size() > 1 && first.reducer && options.share_gradients && options.gradient_as_bucket_view &&
         context_.communicator->shares_memory() && !context_.gradients.local_sgd && !reductions_in_join_;
}

void Accelerator::clip_grad_value_(const std::vector<at::Tensor>& parameters, double limit) {
  if (!context_.gradients.acts()) return;
  const trace::Range range(trace::Event::clip);
  unscale_gradients_of(parameters);
  for (const at::Tensor& parameter : parameters)
    if (parameter.grad().defined()) nn::clip_values(parameter.grad(), limit);
}

}  // namespace tandem
