#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "nn/reducer_group.h"
#include "optim/accelerated_parts.h"
#include "tandem/data/loader_base.h"
#include "tandem/optim/grad_scaler.h"

namespace tandem {

/// What one rank has prepared, in the order in which it was: models as their reducers, the others for as long as the
/// program has them.
struct Prepared {
  /// The optimizers that still exist.
  std::vector<optim::AcceleratedOptimizer> alive_optimizers() const;
  /// The schedulers that still exist.
  std::vector<optim::AcceleratedScheduler> alive_schedulers() const;
  /// The positions of the loaders that still exist.
  std::vector<std::shared_ptr<data::LoaderPosition>> alive_loaders() const;

  nn::ReducerGroup reducers;                                             ///< of the models
  std::vector<optim::Observer<optim::AcceleratedOptimizer>> optimizers;  ///< see alive_optimizers
  std::vector<optim::Observer<optim::AcceleratedScheduler>> schedulers;  ///< see alive_schedulers
  std::vector<std::weak_ptr<data::LoaderPosition>> loaders;              ///< see alive_loaders
  std::optional<optim::GradScaler> scaler;                               ///< under fp16
};

}  // namespace tandem
