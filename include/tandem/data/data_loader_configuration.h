#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tandem/data/rng_type.h"

namespace tandem::data {

/// How prepared loaders divide their data, for all loaders of a launch.
struct DataLoaderConfiguration {
  bool split_batches = false;                   ///< a loader's batch_size is that of all ranks together
  std::optional<bool> dispatch_batches = {};    ///< rank 0 reads for all; default: for iterable datasets only.
                                                ///< Shuffles in another order, but for use_seedable_sampler
  bool even_batches = true;                     ///< repeat samples so that all ranks get as many (shard mode)
  bool use_seedable_sampler = false;            ///< shuffle epoch e from seed + e instead of a generator that runs on
  std::optional<std::uint64_t> data_seed = {};  ///< of loaders without one; default: the master seed
  /// GPU ranks: batches are copied on a stream of their own, each while the one before is computed with. Off: when
  /// their turn comes, and the host waits.
  bool non_blocking = true;
  /// Generators that get rank 0's state on all ranks whenever a loader begins an epoch. With `cpu` or `cuda` all ranks
  /// then draw the same numbers (the same dropout masks), which is seldom wanted.
  std::vector<RngType> rng_types = {RngType::generator};
};

}  // namespace tandem::data
