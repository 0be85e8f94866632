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

std::shared_ptr<data::LoaderBase> Preparation::prepare_loader(const data::DataLoaderOptions& options,
                                                              const data::detail::AnyDataset& dataset) {
  return training_.prepare_loader(options, dataset);
}

optim::AcceleratedScheduler Preparation::prepare_scheduler(optim::detail::SchedulerCalls calls) {
  return training_.prepare_scheduler(std::move(calls));
}

c10::DeviceType Preparation::device_type() const { return training_.context.device().type(); }

}  // namespace tandem::detail
