#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tandem/tandem.h"

namespace train {

/// The best of one figure so far.
struct BestFigure {
  std::string name;  ///< empty: none was asked for
  std::optional<double> value;
  std::int64_t step = 0;          ///< after which it was found
  std::int64_t judged_since = 0;  ///< how often the network was no better since

  /// Takes what was found after `at` updates. True when it is better than all before; NaN never is. Another figure than
  /// the one before begins anew.
  bool take(const std::string& figure, double found, std::int64_t at, bool more_is_better);

  c10::IValue state_dict() const;
  void load_state_dict(const c10::IValue& state);
};

/// What of a training only the program knows, as a part of its checkpoints.
struct TrainingState {
  std::int64_t steps = 0;  ///< optimizer updates made
  std::int64_t epoch = 0;  ///< that is running, from 0
  /// By rank, the sum of its batches' losses in the epoch so far; in exact mode that of the windows' means, once.
  std::vector<double> epoch_losses;
  std::vector<std::int64_t> epoch_batches;  ///< how many batches, or windows, these are
  std::int64_t judged_at = 0;               ///< updates after which the network was judged last
  BestFigure best, stops_by;                ///< of --save-best and --early-stop
  // With what it was made; empty or 0 in older checkpoints.
  std::vector<std::string> classes;  ///< names of the task's
  std::string description;           ///< of them, by describe_classes
  std::string data;                  ///< what Task::data says
  std::int64_t global_batch = 0;     ///< samples of all ranks' batches together
  tandem::io::Config flags;

  c10::IValue state_dict() const;
  void load_state_dict(const c10::IValue& state);
};

}  // namespace train
