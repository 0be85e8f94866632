#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "data/epoch_steps.h"
#include "tandem/data/detail/any_batch.h"

namespace tandem::data {

/// A step with its batches: one for each part of the plan where rank 0 reads for all, otherwise the reading rank's
/// only.
struct Step {
  StepInfo info;                          ///< which step, or sub-step of the reading rank, it is
  std::vector<detail::AnyBatch> batches;  ///< by part, or the only one
  std::int64_t rows = 0;                  ///< samples of each of them where rank 0 reads for all
};

/// What one rank gets of a step.
struct RankStep {
  StepInfo info;           ///< which step it is
  detail::AnyBatch batch;  ///< the rank's
};

/// Makes the steps of epochs out of a dataset.
class StepSource {
 public:
  /// Makes one step; may run on any thread, at the same time as others and as `next`.
  using Job = std::function<Step()>;

  virtual ~StepSource() = default;

  /// Begins an epoch.
  virtual void start(const EpochStart& start) = 0;

  /// What makes the next step; nothing at the end of the epoch. May run on any thread, one call at a time.
  virtual Job next() = 0;

  /// EpochPlan::remainder of the epoch; -1 while it is not known.
  virtual std::int64_t remainder() const = 0;
};

}  // namespace tandem::data
