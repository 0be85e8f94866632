#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "inputs.h"
#include "losses.h"
#include "options.h"
#include "records.h"
#include "tandem/tandem.h"
#include "training_state.h"

namespace train {

/// The checkpoints of a training: the one that it goes on from, and those that it writes. One a rank.
class Checkpoints {
 public:
  /// `state` is how far the training is: it goes into checkpoints, and comes out of one. It outlives the object, as all
  /// that is given here does.
  Checkpoints(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Records& records,
              TrainingState& state);

  /// Goes on from the checkpoint of --resume, if there is one: then returns true. From here on the state says with what
  /// its checkpoints are made. To be called before training. Collective.
  bool begin();

  /// This rank's losses of the epoch in which it goes on. Ranks that there are not any more leave theirs to the others.
  Losses resumed_losses() const;

  /// Saves where --save-every says so, and after the `last` update. `epoch_losses`: of this rank, of the epoch so far.
  /// A training is worth more than a checkpoint of it: one that fails is a warning. Collective.
  void save_if_due(bool last, const Losses& epoch_losses);

  /// Waits until all are written. Collective.
  void wait();

  const std::string& resumed_from() const { return resumed_from_; }  ///< empty: none
  const std::string& saved_to() const { return saved_to_; }          ///< the last one; empty: none
  const std::string& failed() const { return failed_; }              ///< why the last one is not there; empty: it is

 private:
  void warn_if_it_fails(const std::function<void()>& save);

  tandem::Accelerator& accelerator_;
  const Options& options_;
  const Inputs& inputs_;
  Records& records_;
  TrainingState& state_;
  std::int64_t saved_at_ = 0;  // updates that the last one has
  std::string resumed_from_, saved_to_, failed_;
};

}  // namespace train
