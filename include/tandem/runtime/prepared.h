#pragma once

#include "tandem/data/prepared_data_loader.h"
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
}  // namespace detail

/// What `prepare` returns for a module, by the name that the program has for it:
///
///     void train(tandem::Accelerator& accelerator, tandem::PreparedModel<torch::nn::Sequential> model,
///                tandem::PreparedOptimizer optimizer, tandem::PreparedLoader<Data> batches);
template <class Module>
using PreparedModel = nn::Model<typename detail::ImplOf<Module>::type>;

/// What `prepare` returns for an optimizer.
using PreparedOptimizer = optim::AcceleratedOptimizer;

/// What `prepare` returns for a scheduler.
using PreparedScheduler = optim::AcceleratedScheduler;

/// What `prepare` returns for a loader of type `Loader`, as data::DataLoader<data::MnistDataset>.
template <class Loader>
using PreparedLoader = data::PreparedDataLoader<typename Loader::Batch>;

}  // namespace tandem
