#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include <c10/core/Device.h>

#include "comm/rank_group.h"
#include "tandem/data/detail/active_loaders.h"

namespace tandem::data {

/// The batch that a loader gives next.
struct EpochPosition {
  std::uint64_t loader;    ///< its number in the process; the same for those that skip some of its steps
  const StepInfo* status;  ///< as ActiveLoaders has it
  std::int64_t epoch;      ///< from 0
  std::int64_t step;       ///< batches of the epoch before it
  std::int64_t steps;      ///< of the epoch; -1: not known
};

/// Where a prepared loader runs.
struct LoaderContext {
  int rank = 0;                         ///< which of the launch
  int shards = 1;                       ///< parts of a step that it takes: see RankShards
  comm::RankGroup* group = nullptr;     ///< outlives the loader
  ActiveLoaders* active = nullptr;      ///< of the rank; outlives the loader
  std::optional<c10::Device> device;    ///< where batches go; empty: they stay where the dataset made them
  bool non_blocking = true;             ///< to a GPU: on a stream of their own, one batch ahead
  bool pin_memory = true;               ///< to a GPU: through pinned memory
  bool align = false;                   ///< batches' tensors are dense, and begin where LibTorch's own memory may
  std::function<void()> on_epoch = {};  ///< called by each rank when it begins an epoch (to synchronise generators)
  /// Called by each rank before it takes a batch; false: the epoch ends there, early.
  std::function<bool(const EpochPosition&)> before_batch = {};
  std::function<void()> on_batch = {};  ///< called by each rank when it has taken a batch, or left an epoch
  std::string name = "a data loader";   ///< what errors call it
};

}  // namespace tandem::data
