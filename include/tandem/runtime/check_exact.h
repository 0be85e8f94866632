#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch_config.h"

namespace tandem {

/// Where two trainings in exact mode parted that should have been the same.
struct ExactDifference {
  std::int64_t window = 0;  ///< the accumulation window after which they differed, from 1
  std::string state;        ///< what differed first of all that was compared, such as "weight 0.bias"
  std::string source;  ///< what made other values first, in that window: an operator, and which layer it belongs to
};

/// What `check_exact` has found.
struct ExactCheck {
  int ranks = 0;                                ///< of the one training
  int other_ranks = 0;                          ///< of the other
  std::int64_t windows = 0;                     ///< that were compared; up to the one with the difference
  std::optional<ExactDifference> difference{};  ///< nothing: all of it was the same

  std::string text() const;  ///< a sentence for people
};

/// Trains twice in exact mode, one after the other: as `config` says, and on one rank (on two, where `config` has one);
/// each for `windows` accumulation windows, and compares weights, buffers and generators after each of them, to the
/// bit, also between the ranks. Finds models that have operators of their own whose results depend on the number of
/// ranks, or on the order in which threads come. `body` is one that `launch` takes, and has to be the same training
/// each time it is run. It is left by an exception, Cancelled, when the windows are done, so what it does at its end is
/// not done; what it writes to files before, it writes twice.
///
/// `config` without `exact` is checked with ExactOptions' defaults. Looking at the results of all operators takes
/// several times the time of training. Throws what `launch` throws, and ConfigError for `windows` below 1, or where
/// there is one logical rank.
ExactCheck check_exact(const LaunchConfig& config, const std::function<void(Accelerator&)>& body,
                       std::int64_t windows = 3);

}  // namespace tandem
