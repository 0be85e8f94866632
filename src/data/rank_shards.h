#pragma once

#include <algorithm>
#include <cstdint>

#include "tandem/data/detail/step_info.h"

namespace tandem::data {

/// Which parts of a plan one rank takes: one a step, or in exact mode `each` of them, the logical shards that fall to
/// it, one after the other. Rank after rank, sub-step after sub-step, they are the plan's parts in their order.
struct RankShards {
  int rank = 0;   ///< whose they are
  int ranks = 1;  ///< of the launch
  int each = 1;   ///< parts of a step that a rank takes

  /// The part that is the rank's in sub-step `sub_step`.
  int shard(int sub_step) const { return sub_step * ranks + rank; }

  /// How many of its parts have a step number `step`, when part number i has `steps_of(i)` steps, and no part more than
  /// one before it.
  template <class StepsOf>
  int present(std::int64_t step, const StepsOf& steps_of) const {
    int count = 0;
    while (count < each && step < steps_of(shard(count))) count += 1;
    return count;
  }
};

/// Makes `info`, of a whole step, that of its sub-step `sub_step` of `sub_steps`, in which all ranks together have
/// `rows`, after `rows_before` in those before it.
inline StepInfo info_of_sub_step(StepInfo info, int sub_step, int sub_steps, std::int64_t rows_before,
                                 std::int64_t rows) {
  info.sub_step = sub_step;
  info.sub_steps = sub_steps;
  if (info.samples_to_keep >= 0)
    info.samples_to_keep = std::clamp<std::int64_t>(info.samples_to_keep - rows_before, 0, rows);
  return info;
}

}  // namespace tandem::data
