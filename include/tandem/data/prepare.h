#pragma once

#include <memory>
#include <optional>

#include "tandem/data/data_loader.h"
#include "tandem/data/data_loader_dispatcher.h"
#include "tandem/data/data_loader_shard.h"

namespace tandem::data {

/// How prepared loaders divide their data, for all loaders of a launch.
struct DataLoaderConfiguration {
  bool split_batches = false;                   ///< a loader's batch_size is that of all ranks together
  std::optional<bool> dispatch_batches = {};    ///< rank 0 reads for all; default: not for map-style datasets
  bool even_batches = true;                     ///< repeat samples so that all ranks get as many (shard mode)
  bool use_seedable_sampler = false;            ///< shuffle epoch e from seed + e instead of a generator that runs on
  std::optional<std::uint64_t> data_seed = {};  ///< of shuffling loaders without one; default: the master seed
  bool non_blocking = false;                    ///< copy batches to the device without waiting
};

/// The sampler of a loader with these options.
std::unique_ptr<Sampler> make_sampler(const DataLoaderOptions& options, const DataLoaderConfiguration& configuration,
                                      std::uint64_t master_seed);

/// Throws DataError when a loader's plan differs between ranks, saying how. Collective.
void check_same_plan(const LoaderContext& context, const EpochPlanOptions& plan);

/// Makes this rank's loader of `loader`. Collective. Throws ConfigError for options that do not go together.
template <class Dataset>
PreparedDataLoader<typename DataLoader<Dataset>::Batch> prepare_loader(const DataLoader<Dataset>& loader,
                                                                       const DataLoaderConfiguration& configuration,
                                                                       std::uint64_t master_seed,
                                                                       const LoaderContext& context) {
  using Batch = typename DataLoader<Dataset>::Batch;
  const EpochPlanOptions options{.length = loader.length(),
                                 .batch_size = loader.options().batch_size,
                                 .ranks = context.group->world_size(),
                                 .drop_last = loader.options().drop_last,
                                 .even_batches = configuration.even_batches,
                                 .split_batches = configuration.split_batches,
                                 .dispatch = configuration.dispatch_batches.value_or(false)};
  check_same_plan(context, options);
  EpochCursor cursor(EpochPlan(options), context.rank, make_sampler(loader.options(), configuration, master_seed));
  if (options.dispatch)
    return PreparedDataLoader<Batch>(
        std::make_shared<DataLoaderDispatcher<Batch>>(context, std::move(cursor), loader.reader()));
  return PreparedDataLoader<Batch>(
      std::make_shared<DataLoaderShard<Batch>>(context, std::move(cursor), loader.reader()));
}

}  // namespace tandem::data
