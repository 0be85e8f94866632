#pragma once

#include <memory>
#include <string>

#include <ATen/core/grad_mode.h>
#include <torch/optim/optimizer.h>

#include "tandem/core/error.h"

namespace tandem::optim {

/// What a step of our optimizers has in common: asks `closure`, if there is one, for the loss, which is returned, and
/// calls `update(parameter, gradient, options)` for each parameter that has a gradient, without a graph. Throws
/// ConfigError, in which `name` is the optimizer's, for complex parameters and sparse gradients.
template <class Options, class Update>
at::Tensor step_each_gradient(torch::optim::Optimizer& optimizer, const char* name,
                              const torch::optim::Optimizer::LossClosure& closure, const Update& update) {
  at::Tensor loss;
  if (closure) {
    const at::AutoGradMode with_graph(true);
    loss = closure();
  }
  const at::NoGradGuard no_grad;
  for (const auto& group : optimizer.param_groups()) {
    const auto& options = static_cast<const Options&>(group.options());
    for (const at::Tensor& parameter : group.params()) {
      const at::Tensor& gradient = parameter.grad();
      if (!gradient.defined()) continue;
      if (gradient.is_sparse() || parameter.is_complex())
        throw ConfigError(std::string(name) +
                          " updates no parameters that are complex or have sparse gradients; give them to another "
                          "optimizer");
      update(parameter, gradient, options);
    }
  }
  return loss;
}

/// The optimizer's state of a parameter, made when it is asked for the first time.
template <class State>
State& state_of(torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
  auto& state = optimizer.state()[parameter.unsafeGetTensorImpl()];
  if (!state) state = std::make_unique<State>();
  return static_cast<State&>(*state);
}

}  // namespace tandem::optim
