#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tandem/tandem.h"

namespace train {

/// What of a training only the program knows, as a part of its checkpoints.
struct TrainingState {
  std::int64_t steps = 0;                   ///< optimizer updates made
  std::int64_t epoch = 0;                   ///< that is running, from 0
  std::vector<double> epoch_losses;         ///< by rank, the sum of its batches' losses in the epoch so far
  std::vector<std::int64_t> epoch_batches;  ///< by rank, how many batches these are
  tandem::io::Config flags;                 ///< with which it was made; empty in older checkpoints

  c10::IValue state_dict() const;
  void load_state_dict(const c10::IValue& state);
};

}  // namespace train
