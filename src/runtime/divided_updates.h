// How ranks share weights and divide their updates, and when they do not.
#pragma once

#include <memory>

#include "checkpoint/training_parts.h"
#include "runtime/rank_context.h"

namespace tandem {

/// One rank's.
class DividedUpdates {
 public:
  /// Both outlive it.
  DividedUpdates(RankContext& context, TrainingParts& parts) : context_(context), parts_(parts) {}

  /// Gives the weights of a model that was prepared to all ranks, where LaunchConfig::sharding has them share.
  /// Collective.
  void lend(nn::SharedWeights& weights) const;

  /// What divides the updates of `optimizer`; null where each rank makes all. Collective.
  std::unique_ptr<optim::ShardedOptimizer> divide(torch::optim::Optimizer& optimizer) const;

  /// Until `end_apart`, ranks take different steps: each updates its weights by itself. Collective.
  void begin_apart();

  /// Ranks have the same weights again. Collective.
  void end_apart();

  /// Instead of `end_apart`, after a failure: what was prepared so far stays each rank's own.
  void stay_apart() noexcept { apart_ = false; }

  bool apart() const { return apart_; }  ///< whether ranks take different steps now

 private:
  bool sums_apart() const;
  void for_each_divided(void (optim::ShardedOptimizer::*action)()) const;

  RankContext& context_;
  TrainingParts& parts_;
  bool apart_ = false;
};

}  // namespace tandem
