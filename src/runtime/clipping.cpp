#include "runtime/clipping.h"

#include <unordered_set>

#include <ATen/Functions.h>

#include "nn/clip_gradients.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {

void Clipping::unscale_all() {
  for (const auto& optimizer : parts_.alive_optimizers()) unscale(optimizer);
}

void Clipping::unscale(const optim::AcceleratedOptimizer& optimizer) {
  if (parts_.scaler && context_.window.acts()) parts_.scaler->unscale_(optimizer.inner());
}

// Of the optimizers that update any of `parameters`; the others may still wait for a backward pass.
void Clipping::unscale_gradients_of(const std::vector<at::Tensor>& parameters) {
  if (!parts_.scaler) return;
  std::unordered_set<const void*> wanted;
  for (const at::Tensor& parameter : parameters)
    if (parameter.grad().defined()) wanted.insert(parameter.unsafeGetTensorImpl());
  for (const auto& optimizer : parts_.alive_optimizers()) {
    std::size_t found = 0;
    for (const auto& group : optimizer.inner().param_groups())
      for (const at::Tensor& parameter : group.params()) found += wanted.erase(parameter.unsafeGetTensorImpl());
    if (found > 0) parts_.scaler->unscale_(optimizer.inner());
  }
  if (!wanted.empty())
    throw ConfigError("clipping under mixed precision fp16 needs to know whose the gradients are, but " +
                      std::to_string(wanted.size()) +
                      " of them belong to no prepared optimizer; prepare the optimizer that updates these parameters, "
                      "or clip only what a prepared one updates");
}

at::Tensor Clipping::clip_norm(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type) {
  context_.group->token().check();
  if (!context_.window.acts()) return {};
  const trace::Range range(trace::Event::clip);
  unscale_gradients_of(parameters);
  const auto gradients = nn::reduced_gradients(parts_.reducers, parameters);
  if (gradients.empty()) return at::zeros({}, at::dtype(at::kFloat).device(context_.device()));
  if (context_.world_size() == 1 && !context_.config().fused_optimizers && !context_.config().exact) {
    at::Tensor norm = nn::total_norm_as_torch(gradients, norm_type);
    nn::clip_as_torch(gradients, norm, max_norm);
    return norm;
  }
  at::Tensor norm = nn::total_norm(gradients, norm_type);
  if (clips_together(gradients.front()))
    nn::clip_together(gradients, norm, max_norm, *context_.group, context_.rank);
  else
    nn::clip_each(gradients, norm, max_norm);
  return norm;
}

bool Clipping::clips_together(const nn::ReducedGradient& first) const {
  const nn::GradientReducerOptions& options = context_.config().gradient_reducer;
  return context_.group->place().some_share_memory() && first.reducer && options.share_gradients &&
         options.gradient_as_bucket_view && context_.communicator->shares_memory() && !updates_.apart();
}

void Clipping::clip_values(const std::vector<at::Tensor>& parameters, double limit) {
  if (!context_.window.acts()) return;
  const trace::Range range(trace::Event::clip);
  unscale_gradients_of(parameters);
  for (const at::Tensor& parameter : parameters)
    if (parameter.grad().defined()) nn::clip_values(parameter.grad(), limit);
}

}  // namespace tandem
