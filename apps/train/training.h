#pragma once

#include <cstdint>

#include "metrics.h"
#include "options.h"
#include "tandem/tandem.h"

namespace train {

/// How training ended, the same on all ranks.
struct Outcome {
  bool interrupted = false;
  std::int64_t steps = 0;  ///< optimizer updates made
  std::int64_t epoch = 0;  ///< of the last one, from 0
  FinalMetrics metrics;    ///< filled in on rank 0
};

/// Trains on this rank, and writes the log and the weights on rank 0. Collective. `data` holds the training set, loaded
/// once for all ranks.
Outcome train_on_rank(tandem::Accelerator& accelerator, const Options& options, const tandem::data::MnistDataset& data);

}  // namespace train
