#pragma once

#include "tandem/data/prepared_data_loader.h"
#include "tandem/models/script_module.h"
#include "tandem/nn/model.h"
#include "tandem/optim/accelerated.h"

namespace tandem {

namespace detail {
template <class Module>
struct ImplOf {
  using type = Module;
};
template <class Holder>
requires requires { typename Holder::ContainedType; }
struct ImplOf<Holder> {
  using type = typename Holder::ContainedType;
};
template <>
struct ImplOf<torch::jit::Module> {
  using type = models::ScriptModule;
};
}  // namespace detail

/// What `prepare` returns for a module (holder, shared_ptr, or torch::jit::Module), which it has moved to the device,
/// and given rank 0's parameters and buffers. (ConfigError names the first parameter that differs between ranks.) By
/// the name that the program has for the module:
///
///     void train(tandem::Accelerator& accelerator, tandem::PreparedModel<torch::nn::Sequential> model,
///                tandem::PreparedOptimizer optimizer, tandem::PreparedLoader<Data> batches);
template <class Module>
using PreparedModel = nn::Model<typename detail::ImplOf<Module>::type>;

/// What `prepare` returns for a torch::optim::Optimizer, which must outlive it: SGD, Adam and AdamW step by
/// optim::FusedStep unless LaunchConfig::fused_optimizers is off.
using PreparedOptimizer = optim::AcceleratedOptimizer;

/// What `prepare` returns for a scheduler, which must outlive it: an LRScheduler or one that reduces the rate on
/// plateaus, tandem::optim's or torch::optim's.
using PreparedScheduler = optim::AcceleratedScheduler;

/// What `prepare` returns for a loader of type `Loader`, as data::DataLoader<data::MnistDataset>.
template <class Loader>
using PreparedLoader = data::PreparedDataLoader<typename Loader::Batch>;

}  // namespace tandem
