#include "runtime/training_warnings.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "comm/rank_group.h"
#include "optim/same_optimizers.h"

namespace tandem {

void TrainingWarnings::tell(const std::string& text) const {
  if (context_.is_main()) context_.config().on_warning(text);
}

// A part of another model gets gradients through that one.
bool TrainingWarnings::was_called(const at::Tensor& parameter) const {
  return std::any_of(parts_.reducers.begin(), parts_.reducers.end(),
                     [&](const auto& other) { return other->was_called() && other->has(parameter); });
}

void TrainingWarnings::look_for_raw_forward() {
  const LaunchConfig& config = context_.config();
  if (config.mixed_precision == Precision::no || !config.on_warning || autocast_used_ || told_of_raw_forward_) return;
  for (const auto& reducer : parts_.reducers) {
    const auto& parameters = reducer->parameters();
    if (parameters.empty() || was_called(parameters.front().second)) continue;
    const auto trained = std::count_if(parameters.begin(), parameters.end(),
                                       [](const auto& named) { return named.second.requires_grad(); });
    if (static_cast<std::ptrdiff_t>(reducer->unused_parameters().size()) == trained) continue;
    told_of_raw_forward_ = true;
    return tell(
        "a model is trained in full precision although the launch asks for mixed precision: its forward was called on "
        "the module itself; call what prepare returned, model(x), or do it within autocast()");
  }
}

void TrainingWarnings::look_for_other_weights() {
  if (!is_heard()) return;
  std::vector<nn::ModelReducer*> anew;
  for (const auto& reducer : parts_.reducers)
    if (compared_.insert(reducer.get()).second) anew.push_back(reducer.get());
  if (anew.empty()) return;
  // Ranks that have stepped on gradients of their own, as within no_sync, differ rightly.
  const auto optimizers = parts_.alive_optimizers();
  const bool updated =
      std::any_of(optimizers.begin(), optimizers.end(), [](const auto& optimizer) { return optimizer.updates() > 0; });
  const auto all = context_.group->meet(context_.rank, {.operation = "reduce_gradients"}, updated ? 1 : 0);
  if (std::any_of(all.begin(), all.end(), [](std::uint64_t one) { return one != 0; })) return;
  for (nn::ModelReducer* reducer : anew) {
    const auto found = reducer->weights().difference();
    if (!found || std::exchange(reducer->weights().told_of_difference, true)) continue;
    tell(optim::describe_other_weights(optim::name_of(found->parameter, parts_.reducers), found->rank) +
         ". The ranks train on with different weights");
  }
}

void TrainingWarnings::look_for_foreign_parameters(const torch::optim::Optimizer& optimizer) {
  if (!is_heard() || !seen_.insert(&optimizer).second) return;
  std::size_t index = 0;
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params()) {
      index += 1;
      if (!parameter.requires_grad() || parts_.reducers.find(parameter)) continue;
      return tell(c10::str("parameter ", index - 1, " of an optimizer, ", parameter.scalar_type(), parameter.sizes(),
                           ", is of no prepared model: its gradient is not averaged, and each rank trains it alone; "
                           "prepare the model that has it"));
    }
}

void TrainingWarnings::look_for_local_gradients(const torch::optim::Optimizer& optimizer) {
  if (!is_heard() || !context_.is_main() || told_of_local_gradients_) return;
  if (context_.window.reduction().no_sync || !has_local_gradient(optimizer)) return;
  told_of_local_gradients_ = true;
  tell(
      "an optimizer has stepped on gradients that were not averaged over the ranks, which loss.backward() does not do, "
      "nor a pass within no_sync: write accelerator.backward(loss). The ranks train on with different weights");
}

// Whether this rank has added to a gradient of the optimizer since the last reduction.
bool TrainingWarnings::has_local_gradient(const torch::optim::Optimizer& optimizer) const {
  if (!parts_.has_local_gradients()) return false;
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params())
      if (const auto* const model = parts_.reducers.find(parameter); model && model->has_local_gradient(parameter))
        return true;
  return false;
}

}  // namespace tandem
