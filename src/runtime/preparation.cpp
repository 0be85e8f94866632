#include "tandem/runtime/detail/preparation.h"

#include <utility>

#include "runtime/rank_training.h"

namespace tandem::detail {

std::shared_ptr<nn::GradientReducer> Preparation::reducer_of(const std::shared_ptr<torch::nn::Module>& module) {
  return training_.prepare_module(module);
}

optim::AcceleratedOptimizer Preparation::prepare_optimizer(torch::optim::Optimizer& optimizer,
                                                           optim::OptimizerClass its_class) {
  return training_.prepare_optimizer(optimizer, its_class);
}

data::LoaderContext Preparation::loader_context() { return training_.loader_context(); }

const nn::AccumulationWindow& Preparation::window() const { return training_.context.window; }

c10::DeviceType Preparation::device_type() const { return training_.context.device().type(); }

std::function<bool()> Preparation::tells_skipping(const torch::optim::Optimizer* optimizer) const {
  if (!training_.parts.scaler) return {};
  return [&training = training_, optimizer] { return training.step_was_skipped(optimizer); };
}

void Preparation::keep(const optim::AcceleratedScheduler& scheduler) {
  training_.parts.schedulers.emplace_back(scheduler);
}

void Preparation::keep(std::weak_ptr<data::LoaderPosition> loader) {
  training_.parts.loaders.push_back(std::move(loader));
}

}  // namespace tandem::detail
