#pragma once

#include <memory>
#include <type_traits>

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include "tandem/data/data_loader.h"
#include "tandem/data/prepared_data_loader.h"
#include "tandem/models/script_module.h"
#include "tandem/nn/model.h"
#include "tandem/optim/accelerated.h"
#include "tandem/optim/detail/optimizer_class.h"
#include "tandem/optim/detail/scheduler_calls.h"
#include "tandem/runtime/launch_config.h"

namespace tandem {
class RankTraining;
}

namespace tandem::detail {

template <class T>
constexpr bool is_prepared =
    data::detail::is_instance<T, nn::Model> || data::detail::is_instance<T, data::PreparedDataLoader> ||
    std::is_same_v<T, optim::AcceleratedOptimizer> || std::is_same_v<T, optim::AcceleratedScheduler>;

/// Refuses what nothing would keep: the wrappers of optimizers and schedulers refer to what was given.
template <class Object>
consteval void check_kept() {
  using Type = std::remove_cvref_t<Object>;
  static_assert(std::is_lvalue_reference_v<Object> || !std::is_base_of_v<torch::optim::Optimizer, Type>,
                "prepare of a temporary optimizer, which would be gone when it is used: make it a variable, as "
                "`torch::optim::AdamW adamw(net->parameters(), 1e-3);`, and give prepare that");
  static_assert(std::is_lvalue_reference_v<Object> || !(optim::UpdateScheduler<Type> || optim::MetricScheduler<Type>),
                "prepare of a temporary scheduler, which would be gone when it is used: make it a variable, and give "
                "prepare that");
  static_assert(!std::is_base_of_v<torch::nn::Module, Type>,
                "prepare of a module that nothing keeps: give it a holder (TORCH_MODULE, as torch::nn::Linear) or a "
                "std::shared_ptr to it");
}

/// Wraps objects of any type for Accelerator::prepare.
class Preparation {
 public:
  /// Both outlive it.
  Preparation(RankTraining& training, const AcceleratorState& state) : training_(training), config_(state.config) {}

  /// What prepare returns for `object`. Collective.
  template <class T>
  auto prepare(T& object) {
    using Type = std::remove_cv_t<T>;
    if constexpr (is_prepared<Type>) {
      return object;
    } else if constexpr (requires { typename Type::ContainedType; }) {  // a module holder
      return prepare_module(nn::module_of(object));
    } else if constexpr (data::detail::is_instance<Type, std::shared_ptr>) {
      static_assert(std::is_base_of_v<torch::nn::Module, typename Type::element_type>,
                    "prepare takes a shared_ptr to a torch::nn::Module; give other objects themselves");
      return prepare_module(object);
    } else if constexpr (std::is_same_v<Type, torch::jit::Module>) {
      return prepare_module(std::make_shared<models::ScriptModule>(object));
    } else if constexpr (std::is_base_of_v<torch::optim::Optimizer, Type>) {
      return prepare_optimizer(object, optim::optimizer_class(object));
    } else if constexpr (optim::UpdateScheduler<Type> || optim::MetricScheduler<Type>) {
      return prepare_scheduler(optim::detail::SchedulerCalls(object));
    } else {
      static_assert(data::detail::is_instance<Type, data::DataLoader>,
                    "prepare takes torch::nn modules (holder or shared_ptr), torch::jit modules, torch::optim "
                    "optimizers, learning rate schedulers and tandem::data::DataLoader");
      return data::PreparedDataLoader<typename Type::Batch>(prepare_loader(object.options(), object.any_dataset()));
    }
  }

 private:
  template <class Impl>
  nn::Model<Impl> prepare_module(const std::shared_ptr<Impl>& module) {
    auto reducer = reducer_of(module);
    return nn::Model<Impl>(module, std::move(reducer), device_type(), config_.mixed_precision);
  }

  std::shared_ptr<nn::GradientReducer> reducer_of(const std::shared_ptr<torch::nn::Module>& module);
  optim::AcceleratedOptimizer prepare_optimizer(torch::optim::Optimizer& optimizer, optim::OptimizerClass its_class);
  std::shared_ptr<data::LoaderBase> prepare_loader(const data::DataLoaderOptions& options,
                                                   const data::detail::AnyDataset& dataset);
  optim::AcceleratedScheduler prepare_scheduler(optim::detail::SchedulerCalls calls);
  c10::DeviceType device_type() const;

  RankTraining& training_;
  const LaunchConfig& config_;
};

}  // namespace tandem::detail
