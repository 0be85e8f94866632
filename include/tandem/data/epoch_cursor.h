#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tandem/data/epoch_plan.h"
#include "tandem/data/loader_status.h"
#include "tandem/data/sampler.h"

namespace tandem::data {

/// Walks one rank through the plan of each epoch in the sampler's order.
class EpochCursor {
 public:
  EpochCursor(EpochPlan plan, int rank, std::unique_ptr<Sampler> sampler);

  /// The same epochs without their first `steps` steps; shares sampler and epoch counter with this one.
  /// Throws ConfigError when `steps` is negative.
  EpochCursor skipping(std::int64_t steps) const;

  /// Begins an epoch: draws its order. Throws DataError when the sampler does.
  void start();

  /// False at the end of the epoch.
  bool has_step() const { return step_ < plan_.steps(rank_); }
  std::int64_t step() const { return step_; }

  /// Dataset indices of this step for `rank`.
  std::vector<std::int64_t> indices(int rank) const;

  /// The batch of this step was fetched and is about to be handed out.
  void advance();

  /// The epoch ran to its end: counts it.
  void finish();

  const EpochPlan& plan() const { return plan_; }
  int rank() const { return rank_; }
  std::int64_t len() const;
  std::int64_t epoch() const { return shared_->epoch; }
  void set_epoch(std::int64_t epoch) { shared_->epoch = epoch; }
  const LoaderStatus& status() const { return *status_; }

 private:
  struct Shared {  // between a loader and those that skip some of its steps
    std::unique_ptr<Sampler> sampler;
    std::int64_t epoch = 0;
  };

  EpochCursor(const EpochCursor& other, std::int64_t skip);

  EpochPlan plan_;
  int rank_;
  std::int64_t skip_ = 0;
  std::shared_ptr<Shared> shared_;
  std::unique_ptr<LoaderStatus> status_;  // at a fixed address, also when the cursor moves
  EpochOrder order_;
  std::int64_t step_ = 0;
};

}  // namespace tandem::data
