#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "options.h"
#include "tandem/tandem.h"

namespace train {

/// What of a training only the program knows, as a part of its checkpoints.
struct TrainingState {
  std::int64_t steps = 0;                   ///< optimizer updates made
  std::int64_t epoch = 0;                   ///< that is running, from 0
  std::vector<double> epoch_losses;         ///< by rank, of the epoch so far: see Trainer
  std::vector<std::int64_t> epoch_batches;  ///< the same
  tandem::io::Config flags;                 ///< with which it was made; empty in older checkpoints

  c10::IValue state_dict() const;
  void load_state_dict(const c10::IValue& state);
};

/// The checkpoint that --resume names: a directory, or nothing when `auto` finds none. Throws tandem::ConfigError.
std::optional<std::string> checkpoint_to_resume(const Options& options);

}  // namespace train
