#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tandem/tandem.h"

namespace train {

/// What of a training only the program knows, as a part of its checkpoints.
struct TrainingState {
  std::int64_t steps = 0;  ///< optimizer updates made
  std::int64_t epoch = 0;  ///< that is running, from 0
  /// By rank, the sum of its batches' losses in the epoch so far; in exact mode that of the windows' means, once.
  std::vector<double> epoch_losses;
  std::vector<std::int64_t> epoch_batches;  ///< how many batches, or windows, these are
  tandem::io::Config flags;                 ///< with which it was made; empty in older checkpoints

  c10::IValue state_dict() const;
  void load_state_dict(const c10::IValue& state);
};

}  // namespace train
