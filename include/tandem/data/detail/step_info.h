#pragma once

#include <cstdint>

namespace tandem::data {

/// One step of an epoch, as one rank sees it.
struct StepInfo {
  std::int64_t step = 0;             ///< number in the epoch, from 0
  bool last = false;                 ///< the rank has no step after it
  bool last_of_all = false;          ///< no rank has one
  std::int64_t remainder = -1;       ///< EpochPlan::remainder; -1 too while it is not yet known (iterables)
  std::int64_t samples_to_keep = 0;  ///< rows that gather_for_metrics keeps; 0: all
};

}  // namespace tandem::data
