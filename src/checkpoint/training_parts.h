// What one rank trains, and what a checkpoint is of.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "data/loader_base.h"
#include "nn/reducer_group.h"
#include "optim/accelerated_handles.h"
#include "tandem/optim/grad_scaler.h"

namespace tandem {

/// What `prepare` was given, in that order: models as their reducers, the others for as long as the program has them.
struct TrainingParts {
  /// The optimizers that still exist.
  std::vector<optim::AcceleratedOptimizer> alive_optimizers() const;
  /// The schedulers that still exist.
  std::vector<optim::AcceleratedScheduler> alive_schedulers() const;
  /// The positions of the loaders that still exist.
  std::vector<std::shared_ptr<data::LoaderBase>> alive_loaders() const;

  /// A window begins for all models: see nn::GradientReducer.
  void begin_window() const;

  /// Multiplies what the window has added to the gradients of all models: see nn::GradientReducer.
  void scale_window(double factor) const;

  /// Whether passes of this rank have added to any gradient since the last reduction.
  bool has_local_gradients() const;

  nn::ReducerGroup reducers;                                             ///< of the models
  std::vector<optim::Observer<optim::AcceleratedOptimizer>> optimizers;  ///< see alive_optimizers
  std::vector<optim::Observer<optim::AcceleratedScheduler>> schedulers;  ///< see alive_schedulers
  std::vector<std::weak_ptr<data::LoaderBase>> loaders;                  ///< see alive_loaders
  std::optional<optim::GradScaler> scaler;                               ///< under fp16
};

}  // namespace tandem
