#pragma once

#include <cstdint>

namespace tandem::data {

/// One batch of an epoch, as one rank sees it: a step, or in exact mode a sub-step, one logical shard of a step.
struct StepInfo {
  std::int64_t step = 0;              ///< number in the epoch, from 0
  bool last = false;                  ///< the rank has no step after it
  bool last_of_all = false;           ///< no rank has one
  std::int64_t remainder = -1;        ///< EpochPlan::remainder; -1 too while it is not yet known (iterables)
  std::int64_t samples_to_keep = -1;  ///< rows that gather_for_metrics keeps; -1: all
  int sub_step = 0;                   ///< which of the rank's batches of the step it is, from 0
  int sub_steps = 1;                  ///< how many of them there are

  bool ends_step() const { return sub_step + 1 >= sub_steps; }  ///< whether the rank's next batch is of another step
  bool ends_epoch() const { return last && ends_step(); }       ///< whether the rank has no batch after it
};

}  // namespace tandem::data
