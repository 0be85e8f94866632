#pragma once

#include <cstdint>
#include <optional>

#include "options.h"
#include "tandem/tandem.h"

namespace train {

/// What --scheduler asks for, for a training of `total_steps` updates, of which the first `warmup_steps` are warm-up.
class Schedule {
 public:
  Schedule(tandem::Accelerator& accelerator, torch::optim::Optimizer& optimizer, const Options& options,
           std::int64_t total_steps, std::int64_t warmup_steps);

  /// Sets the rate of the next update. To be called in each micro-batch, after optimizer.step().
  void step();

  /// True when it goes by the loss of each epoch.
  bool wants_loss() const { return by_loss_.has_value(); }

  /// Takes the mean loss of an epoch, the same on all ranks.
  void end_epoch(double loss) { prepared_.step(loss); }

 private:
  std::optional<tandem::optim::SequentialLR> by_updates_;
  std::optional<tandem::optim::ReduceLROnPlateau> by_loss_;  // if not by_updates_
  tandem::optim::AcceleratedScheduler prepared_;
};

}  // namespace train
