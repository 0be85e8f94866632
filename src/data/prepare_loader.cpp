#include "data/prepare_loader.h"

#include <algorithm>
#include <functional>
#include <sstream>
#include <string>
#include <typeinfo>
#include <utility>

#include <c10/util/Type.h>

#include "comm/agree.h"
#include "data/data_loader_dispatcher.h"
#include "data/data_loader_shard.h"
#include "data/map_steps.h"
#include "data/stream_steps.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"

namespace tandem::data {

static std::string to_bytes(const EpochPlanOptions& plan) {
  return comm::pack(plan.length, plan.batch_size, plan.ranks, plan.drop_last, plan.even_batches, plan.split_batches,
                    plan.dispatch);
}

static void from_bytes(std::string_view bytes, EpochPlanOptions& plan) {
  comm::unpack(bytes, plan.length, plan.batch_size, plan.ranks, plan.drop_last, plan.even_batches, plan.split_batches,
               plan.dispatch);
}

namespace {

std::string to_string(const EpochPlanOptions& plan) {
  std::ostringstream text;
  text << std::boolalpha << "length " << plan.length << ", batch_size " << plan.batch_size << ", drop_last "
       << plan.drop_last;
  return text.str();
}

void require(bool holds, const std::string& otherwise) {
  if (!holds) throw ConfigError("data loader: " + otherwise);
}

std::shared_ptr<Sampler> make_sampler(const DataLoaderOptions& options, const DataLoaderConfiguration& configuration,
                                      std::uint64_t seed) {
  if (options.sampler) return options.sampler;
  if (!options.shuffle) return std::make_shared<SequentialSampler>();
  if (configuration.use_seedable_sampler) return std::make_shared<SeedableRandomSampler>(seed);
  if (options.generator) return std::make_shared<RandomSampler>(*options.generator);
  return std::make_shared<RandomSampler>(seed);
}

std::shared_ptr<StepPlanner> make_planner(const DataLoaderOptions& options,
                                          const DataLoaderConfiguration& configuration, std::uint64_t seed,
                                          const EpochPlanOptions& plan, int ranks_here) {
  if (options.shuffle && plan.length == 0)
    throw DataError("an empty dataset cannot be shuffled; give it samples or set shuffle = false");
  const int readers = plan.dispatch ? 1 : ranks_here;
  if (options.batch_sampler) return std::make_shared<StepPlanner>(plan, options.batch_sampler, readers, seed);
  return std::make_shared<StepPlanner>(plan, make_sampler(options, configuration, seed), readers, seed);
}

// Steps that may be ready before a rank takes them.
std::size_t read_ahead_depth(const DataLoaderOptions& options) {
  return static_cast<std::size_t>(std::max(options.workers * options.prefetch, 1));
}

// The threads that read ahead for a loader; null without workers.
std::shared_ptr<WorkerPool> make_worker_pool(const DataLoaderOptions& options, CancelToken& token) {
  if (options.workers == 0) return nullptr;
  return std::make_shared<WorkerPool>(options.workers, "loader", token, options.worker_init);
}

// What reads an iterable dataset by `plan`.
std::shared_ptr<StreamReader> make_stream_reader(const detail::AnyDataset& dataset, const EpochPlanOptions& plan,
                                                 std::uint64_t seed, const CancelToken* token = nullptr) {
  // As many samples at once as all ranks need for a step: what the stream gives does not depend on their number.
  return std::make_shared<StreamReader>(plan, seed, dataset.make_windows(EpochPlan(plan).global_batch_size()), token);
}

std::unique_ptr<StepSource> make_source(const detail::AnyDataset& dataset, const SharedParts& shared, RankShards shards,
                                        std::uint64_t seed) {
  const bool same_kind = dataset.iterable() == !shared.planner;
  if (!same_kind || (shared.stream && *dataset.sample_type != *shared.sample_type))
    throw DataError(
        "a data loader differs between ranks: the samples of rank 0 are of another type than those of rank " +
        std::to_string(shards.rank));
  if (shared.plan.dispatch) shards = {.ranks = shared.plan.ranks};  // all parts at once
  if (!dataset.iterable()) return std::make_unique<MapSteps>(shared.planner, shards, seed, dataset);
  auto stream = shared.stream ? shared.stream : make_stream_reader(dataset, shared.plan, seed);
  return std::make_unique<StreamSteps>(std::move(stream), shards, seed, dataset.collate);
}

void check_same_plan(const LoaderContext& context, const EpochPlanOptions& plan) {
  std::string difference;  // the same on all ranks
  {
    const comm::detail::ObjectExchange all(*context.group, context.rank,
                                           comm::detail::object_call<EpochPlanOptions>("prepare(data loader)", false),
                                           &plan);
    const auto& main = all.of<EpochPlanOptions>(0);
    for (int rank = 1; rank < context.group->world_size() && difference.empty(); ++rank) {
      const auto& theirs = all.of<EpochPlanOptions>(rank);
      if (main.length != theirs.length || main.batch_size != theirs.batch_size || main.drop_last != theirs.drop_last)
        difference = "rank " + std::to_string(rank) + " has " + to_string(theirs) + ", rank 0 has " + to_string(main);
    }
  }
  if (!difference.empty()) throw DataError("a data loader differs between ranks: " + difference);
}

void check_together(const LoaderContext& context, const std::function<void()>& check) {
  comm::check_together(*context.group, context.rank, {.operation = "prepare(data loader)"}, check);
}

// The parts of this node's first rank on all of its ranks. Throws CollectiveError where ranks make batches of different
// types.
std::shared_ptr<const SharedParts> share_from_main(const LoaderContext& context, const std::type_info& batch_type,
                                                   const std::shared_ptr<const SharedParts>& parts) {
  const auto record = comm::describe_object_call("prepare(data loader)", batch_type);
  const comm::RankGroup::Call call(*context.group, context.rank, record, &parts);
  return call.payload<std::shared_ptr<const SharedParts>>(context.group->place().first_rank);
}

// What errors call a loader.
std::string name_of_loader(const detail::AnyDataset& dataset, const EpochPlanOptions& plan) {
  return "the data loader of " + (dataset.iterable() ? "" : std::to_string(plan.length) + " samples of ") +
         c10::demangle(dataset.type->name()) + " (batch_size " + std::to_string(plan.batch_size) + ")";
}

}  // namespace

void check_options(const DataLoaderOptions& options, bool iterable) {
  require(!(options.shuffle && options.sampler), "shuffle and sampler exclude each other; give one of them");
  const bool batch_options = options.batch_size != 1 || options.shuffle || options.sampler || options.drop_last;
  require(!options.batch_sampler || !batch_options,
          "batch_sampler excludes batch_size, shuffle, sampler and drop_last; it decides all of that");
  require(!iterable || (!options.sampler && !options.batch_sampler),
          "an iterable dataset gives its own order; leave sampler and batch_sampler out");
  require(options.workers >= 0 && options.workers <= 1024,
          "workers " + std::to_string(options.workers) + " is out of range; use 0 to 1024");
  require(options.prefetch >= 1, "prefetch " + std::to_string(options.prefetch) + " is too small; use 1 or more");
  require(!options.timeout || options.timeout->count() > 0, "timeout must be positive");
  if (iterable && options.shuffle)
    throw DataError("an iterable dataset cannot be shuffled; shuffle what it reads, or use a map-style dataset");
}

EpochPlanOptions plan_options(const DataLoaderOptions& options, const DataLoaderConfiguration& configuration,
                              std::int64_t length, bool iterable, int ranks) {
  return {.length = length,
          .batch_size = options.batch_size,
          .ranks = ranks,
          .drop_last = options.drop_last,
          .even_batches = configuration.even_batches,
          .split_batches = configuration.split_batches,
          .dispatch = configuration.dispatch_batches.value_or(iterable)};
}

std::shared_ptr<const SharedParts> make_shared_parts(const DataLoaderOptions& options,
                                                     const detail::AnyDataset& dataset,
                                                     const DataLoaderConfiguration& configuration, std::uint64_t seed,
                                                     const EpochPlanOptions& plan, const comm::NodePlace& place,
                                                     CancelToken& token) {
  const int ranks = place.world_size;
  auto shared =
      std::make_shared<SharedParts>(SharedParts{.plan = plan, .ranks = ranks, .sample_type = dataset.sample_type});
  if (!dataset.iterable()) shared->planner = make_planner(options, configuration, seed, plan, place.local_ranks);
  shared->global_batch_size =
      shared->planner ? shared->planner->global_batch_size() : EpochPlan(plan).global_batch_size();
  shared->pool = make_worker_pool(options, token);
  if (dataset.iterable() && !plan.dispatch && plan.ranks > 1)
    shared->stream = make_stream_reader(dataset, plan, seed, &token);
  // Deep enough for what the workers read ahead, and one more: a rank that is scheduled late does not stop rank 0.
  if (plan.dispatch) {
    const std::size_t depth = (read_ahead_depth(options) + 1) * static_cast<std::size_t>(plan.ranks / ranks);
    shared->channel = std::make_shared<DispatchChannel>(ranks, depth, token);
  }
  return shared;
}

std::shared_ptr<LoaderBase> make_loader(const DataLoaderOptions& options, const detail::AnyDataset& dataset,
                                        std::shared_ptr<const SharedParts> shared, std::uint64_t seed,
                                        LoaderContext context) {
  const int rank = context.rank;
  const RankShards shards{rank, shared->ranks, context.shards};
  LoaderParts parts{
      .shared = shared,
      .make_source = [dataset, shared, shards, seed] { return make_source(dataset, *shared, shards, seed); },
      .ahead = {.depth = read_ahead_depth(options), .in_order = options.in_order, .timeout = options.timeout}};
  if (rank == 0) parts.end = std::make_shared<StreamEnd>(shared->stream);
  if (!shared->channel) return std::make_shared<DataLoaderShard>(std::move(context), std::move(parts));
  return std::make_shared<DataLoaderDispatcher>(std::move(context), std::move(parts),
                                                std::make_shared<ChannelEnd>(shared->channel, rank));
}

std::shared_ptr<LoaderBase> prepare_loader(const DataLoaderOptions& options, const detail::AnyDataset& dataset,
                                           const DataLoaderConfiguration& configuration, std::uint64_t master_seed,
                                           LoaderContext context) {
  const std::uint64_t seed = options.seed.value_or(configuration.data_seed.value_or(master_seed));
  EpochPlanOptions plan;
  check_together(context, [&] {
    check_options(options, dataset.iterable());
    require(context.shards == 1 || options.in_order,
            "in_order = false in exact mode, whose batches come in the order of their logical shards; leave it on");
    plan = plan_options(options, configuration, dataset.length(), dataset.iterable(),
                        context.group->world_size() * context.shards);
    require(context.group->place().nodes == 1 || (!plan.dispatch && !dataset.iterable()),
            std::string(dataset.iterable() ? "an iterable dataset" : "dispatch_batches") +
                " with several machines is not there yet; use a dataset that is asked for samples by index, of which "
                "each machine reads its part");
  });
  check_same_plan(context, plan);
  context.name = name_of_loader(dataset, plan);
  context.non_blocking = options.non_blocking.value_or(context.non_blocking);
  context.pin_memory = options.pin_memory;
  std::shared_ptr<const SharedParts> shared;
  check_together(context, [&] {
    if (context.rank == context.group->place().first_rank)
      shared = make_shared_parts(options, dataset, configuration, seed, plan, context.group->place(),
                                 context.group->token());
  });
  shared = share_from_main(context, *dataset.batch_type, shared);
  return make_loader(options, dataset, std::move(shared), seed, std::move(context));
}

}  // namespace tandem::data
