#include "runtime/divided_updates.h"

#include "backend/rank_memory.h"

namespace tandem {

void DividedUpdates::lend(nn::SharedWeights& weights) const {
  const Sharding sharding = context_.config().sharding;
  if (!context_.device().is_cpu() || sharding == Sharding::none || sums_apart()) return;
  weights.lend(sharding == Sharding::automatic ? nn::Lending::shared : nn::Lending::own);
  if (apart_) weights.separate();
  free_rank_memory();  // of the rank's own copy
}

std::unique_ptr<optim::ShardedOptimizer> DividedUpdates::divide(torch::optim::Optimizer& optimizer) const {
  const Sharding sharding = context_.config().sharding;
  const bool wanted =
      sharding == Sharding::optimizer || (sharding == Sharding::automatic && context_.device().is_cpu());
  if (!context_.group->place().some_share_memory() || !wanted || sums_apart()) return nullptr;
  auto divided = std::make_unique<optim::ShardedOptimizer>(optimizer, *context_.communicator, *context_.group,
                                                           parts_.reducers, context_.config().on_warning);
  if (apart_) divided->pause();
  return divided;
}

// Exact mode sums for each rank by itself where ranks are of several nodes.
bool DividedUpdates::sums_apart() const { return context_.config().exact && context_.group->place().nodes > 1; }

void DividedUpdates::begin_apart() {
  for (const auto& reducer : parts_.reducers) reducer->weights().separate();
  for_each_divided(&optim::ShardedOptimizer::pause);
  apart_ = true;  // last: where this fails, nobody would end it
}

void DividedUpdates::end_apart() {
  apart_ = false;  // first, likewise
  for (const auto& reducer : parts_.reducers) reducer->weights().share();
  for_each_divided(&optim::ShardedOptimizer::resume);
}

void DividedUpdates::for_each_divided(void (optim::ShardedOptimizer::*action)()) const {
  for (auto& optimizer : parts_.alive_optimizers())
    if (auto* sharded = optim::sharded_of(optimizer)) (sharded->*action)();
}

}  // namespace tandem
