#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <typeinfo>
#include <vector>

#include "tandem/data/data_loader.h"
#include "tandem/data/data_loader_configuration.h"
#include "tandem/data/data_loader_dispatcher.h"
#include "tandem/data/data_loader_shard.h"

namespace tandem::data {

/// Options of the plan by which a loader of `length` samples is divided.
EpochPlanOptions plan_options(const DataLoaderOptions& options, const DataLoaderConfiguration& configuration,
                              std::int64_t length, bool iterable, int ranks);

/// The planner of a map-style loader. Throws ConfigError for options that do not go together, DataError when there is
/// nothing to shuffle.
std::shared_ptr<StepPlanner> make_planner(const DataLoaderOptions& options,
                                          const DataLoaderConfiguration& configuration, std::uint64_t seed,
                                          const EpochPlanOptions& plan);

/// Throws ConfigError when options do not go together or are out of range; DataError for shuffling an iterable.
void check_options(const DataLoaderOptions& options, bool iterable);

/// Steps that may be ready before a rank takes them.
std::size_t read_ahead_depth(const DataLoaderOptions& options);

/// The threads that read ahead for a loader; null without workers.
std::shared_ptr<WorkerPool> make_worker_pool(const DataLoaderOptions& options, CancelToken& token);

/// Throws DataError on all ranks when a loader's plan differs between them, saying how. Collective.
void check_same_plan(const LoaderContext& context, const EpochPlanOptions& plan);

/// Runs `check`, and throws on all ranks what it throws on the first rank on which it does. Collective.
void check_together(const LoaderContext& context, const std::function<void()>& check);

/// What errors call a loader of such a dataset.
std::string name_of_loader(const std::type_info& dataset, const EpochPlanOptions& plan, bool iterable);

/// What the ranks of a loader share. Made once, by rank 0. Throws as the functions above do.
template <class Dataset, class Batch>
std::shared_ptr<const SharedParts<Batch>> make_shared_parts(const DataLoader<Dataset, Batch>& loader,
                                                            const DataLoaderConfiguration& configuration,
                                                            std::uint64_t seed, const EpochPlanOptions& plan,
                                                            CancelToken& token) {
  auto shared = std::make_shared<SharedParts<Batch>>();
  shared->plan = plan;
  shared->iterable = loader.iterable;
  if (!loader.iterable) shared->planner = make_planner(loader.options(), configuration, seed, plan);
  shared->global_batch_size =
      shared->planner ? shared->planner->global_batch_size() : EpochPlan(plan).global_batch_size();
  shared->pool = make_worker_pool(loader.options(), token);
  if (!plan.dispatch && plan.ranks > 1) shared->stream = loader.make_stream_reader(plan, seed, &token);
  return shared;
}

/// One rank's parts of a loader.
template <class Dataset, class Batch>
LoaderParts<Batch> make_parts(const DataLoader<Dataset, Batch>& loader,
                              std::shared_ptr<const SharedParts<Batch>> shared, int rank, std::uint64_t seed) {
  const DataLoaderOptions& options = loader.options();
  LoaderParts<Batch> parts;
  parts.shared = shared;
  parts.make_source = [loader, shared, rank, seed] {
    using Reader = StreamReader<typename DataLoader<Dataset, Batch>::Sample>;
    if (!shared->stream)
      return loader.make_source(shared->planner, loader.make_stream_reader(shared->plan, seed), rank, seed);
    auto stream = std::dynamic_pointer_cast<Reader>(shared->stream);
    if (!loader.iterable || !stream)
      throw DataError(
          "a data loader differs between ranks: the samples of rank 0 are of another type than those of rank " +
          std::to_string(rank));
    return loader.make_source(shared->planner, std::move(stream), rank, seed);
  };
  if (rank == 0) parts.end = std::make_shared<StreamEnd>(shared->stream);
  parts.ahead = {.depth = read_ahead_depth(options), .in_order = options.in_order, .timeout = options.timeout};
  return parts;
}

/// The rings of a loader whose rank 0 reads for all; null where it does not.
template <class Batch>
std::shared_ptr<DispatchChannel<Batch>> make_channel(const SharedParts<Batch>& shared, const DataLoaderOptions& options,
                                                     CancelToken& token) {
  if (!shared.plan.dispatch) return nullptr;
  // Deep enough for what the workers read ahead, and one more: a rank that is scheduled late does not stop rank 0.
  return std::make_shared<DispatchChannel<Batch>>(shared.plan.ranks, read_ahead_depth(options) + 1, token);
}

/// One rank's loader of its parts. Not collective: one thread can make and run the loaders of all ranks in turn.
template <class Batch>
PreparedDataLoader<Batch> make_loader(LoaderParts<Batch> parts, const LoaderContext& context,
                                      const std::shared_ptr<DispatchChannel<Batch>>& channel) {
  if (!channel) return PreparedDataLoader<Batch>(std::make_shared<DataLoaderShard<Batch>>(context, std::move(parts)));
  return PreparedDataLoader<Batch>(std::make_shared<DataLoaderDispatcher<Batch>>(
      context, std::move(parts), std::make_shared<ChannelEnd<Batch>>(channel, context.rank)));
}

/// Makes this rank's loader of `loader`. Collective. Throws on all ranks the same: ConfigError for options that do not
/// go together, DataError where the ranks' loaders differ, and what the dataset throws; a body that catches it can go
/// on.
template <class Dataset, class Batch>
PreparedDataLoader<Batch> prepare_loader(const DataLoader<Dataset, Batch>& loader,
                                         const DataLoaderConfiguration& configuration, std::uint64_t master_seed,
                                         LoaderContext context) {
  const DataLoaderOptions& options = loader.options();
  const std::uint64_t seed = options.seed.value_or(configuration.data_seed.value_or(master_seed));
  EpochPlanOptions plan;
  check_together(context, [&] {
    check_options(options, loader.iterable);
    plan = plan_options(options, configuration, loader.length(), loader.iterable, context.group->world_size());
  });
  check_same_plan(context, plan);
  context.name = name_of_loader(typeid(Dataset), plan, loader.iterable);
  context.non_blocking = options.non_blocking.value_or(context.non_blocking);
  context.pin_memory = options.pin_memory;
  std::shared_ptr<const SharedParts<Batch>> shared;
  std::shared_ptr<DispatchChannel<Batch>> channel;
  check_together(context, [&] {
    if (context.rank != 0) return;
    shared = make_shared_parts(loader, configuration, seed, plan, context.group->token());
    channel = make_channel(*shared, options, context.group->token());
  });
  shared = share_from_main(context, shared);
  channel = share_from_main(context, channel);
  return make_loader(make_parts(loader, shared, context.rank, seed), context, channel);
}

}  // namespace tandem::data
