#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "tandem/data/prepared_data_loader.h"
#include "tandem/nn/gradient_reducer.h"
#include "tandem/nn/model.h"
#include "tandem/optim/accelerated.h"
#include "tandem/optim/grad_scaler.h"

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

/// What one rank has prepared, in the order in which it was: models as their reducers, the others for as long as the
/// program has them.
struct Prepared {
  /// The optimizers that still exist.
  std::vector<optim::AcceleratedOptimizer> alive_optimizers() const;
  /// The schedulers that still exist.
  std::vector<optim::AcceleratedScheduler> alive_schedulers() const;
  /// The loaders that still exist.
  std::vector<std::shared_ptr<data::LoaderBase>> alive_loaders() const;

  nn::GradientReducers reducers;                                         ///< of the models
  std::vector<optim::Observer<optim::AcceleratedOptimizer>> optimizers;  ///< see alive_optimizers
  std::vector<optim::Observer<optim::AcceleratedScheduler>> schedulers;  ///< see alive_schedulers
  std::vector<std::weak_ptr<data::LoaderBase>> loaders;                  ///< see alive_loaders
  std::optional<optim::GradScaler> scaler;                               ///< under fp16
};

}  // namespace tandem
