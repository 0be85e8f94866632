#include "data/prepare_loader.h"

#include <algorithm>
#include <functional>
#include <sstream>
#include <string>
#include <typeinfo>
#include <utility>

#include <c10/util/Type.h>

#include "comm/agree.h"
#include "comm/nodes/side_traffic.h"
#include "data/data_loader_dispatcher.h"
#include "data/data_loader_shard.h"
#include "data/map_steps.h"
#include "data/stream_steps.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"

namespace tandem::data {

namespace {

// What has to be the same of a loader on all ranks.
struct LoaderFacts {
  EpochPlanOptions plan;
  std::uint64_t seed = 0;
  std::string sample_type, batch_type;  // names
  std::uint64_t fingerprint = 0;        // of the dataset; 0: not known
  int node = 0;                         // of the rank
};

std::string to_bytes(const LoaderFacts& facts) {
  const EpochPlanOptions& plan = facts.plan;
  return comm::pack(plan.length, plan.batch_size, plan.ranks, plan.drop_last, plan.even_batches, plan.split_batches,
                    plan.dispatch, facts.seed, facts.sample_type, facts.batch_type, facts.fingerprint, facts.node);
}

void from_bytes(std::string_view bytes, LoaderFacts& facts) {
  EpochPlanOptions& plan = facts.plan;
  comm::unpack(bytes, plan.length, plan.batch_size, plan.ranks, plan.drop_last, plan.even_batches, plan.split_batches,
               plan.dispatch, facts.seed, facts.sample_type, facts.batch_type, facts.fingerprint, facts.node);
}

std::string to_string(const EpochPlanOptions& plan) {
  std::ostringstream text;
  text << std::boolalpha << "length " << plan.length << ", batch_size " << plan.batch_size << ", drop_last "
       << plan.drop_last;
  return text.str();
}

std::string hexadecimal(std::uint64_t value) {
  std::ostringstream text;
  text << std::hex << value;
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

// What reads an iterable dataset by `plan`; `for_all`: for one rank, which gets the parts of all.
std::shared_ptr<StreamReader> make_stream_reader(const detail::AnyDataset& dataset, const EpochPlanOptions& plan,
                                                 bool for_all, std::uint64_t seed, const CancelToken* token = nullptr) {
  // As many samples at once as all ranks need for a step: what the stream gives does not depend on their number.
  return std::make_shared<StreamReader>(plan, for_all, seed, dataset.make_windows(EpochPlan(plan).global_batch_size()),
                                        token);
}

std::unique_ptr<StepSource> make_source(const detail::AnyDataset& dataset, const SharedParts& shared, RankShards shards,
                                        std::uint64_t seed) {
  const bool same_kind = dataset.iterable() == !shared.planner;
  if (!same_kind || (shared.stream && *dataset.sample_type != *shared.sample_type))
    throw DataError(
        "a data loader differs between ranks: the samples of rank 0 are of another type than those of rank " +
        std::to_string(shards.rank));
  const bool for_all = shared.channel != nullptr;
  if (for_all) shards = {.ranks = shared.plan.ranks};  // all parts at once
  if (!dataset.iterable()) return std::make_unique<MapSteps>(shared.planner, shards, seed, dataset);
  auto stream = shared.stream ? shared.stream : make_stream_reader(dataset, shared.plan, for_all, seed);
  return std::make_unique<StreamSteps>(std::move(stream), shards, seed, dataset.collate);
}

// What is different; empty: nothing.
std::string difference_of(const LoaderFacts& main, const LoaderFacts& theirs, int rank) {
  const auto differs = [&](const std::string& here, const std::string& there) {
    const std::string node = theirs.node > 0 ? " (node " + std::to_string(theirs.node) + ")" : "";
    return "rank " + std::to_string(rank) + node + " has " + there + ", rank 0 has " + here;
  };
  const EpochPlanOptions &here = main.plan, &there = theirs.plan;
  if (here.length != there.length || here.batch_size != there.batch_size || here.drop_last != there.drop_last)
    return differs(to_string(here), to_string(there));
  if (here.dispatch != there.dispatch)
    return differs(here.dispatch ? "dispatch_batches" : "no dispatch_batches",
                   there.dispatch ? "it" : "no dispatch_batches");
  if (theirs.node == 0) return {};  // their types themselves are compared
  if (main.seed != theirs.seed)
    return differs("seed " + std::to_string(main.seed), "seed " + std::to_string(theirs.seed));
  if (main.sample_type != theirs.sample_type)
    return differs("samples of " + main.sample_type, "samples of " + theirs.sample_type);
  if (main.batch_type != theirs.batch_type)
    return differs("batches of " + main.batch_type, "batches of " + theirs.batch_type);
  if (main.fingerprint != theirs.fingerprint && theirs.fingerprint != 0)
    return differs("samples whose fingerprint is " + hexadecimal(main.fingerprint),
                   "samples whose fingerprint is " + hexadecimal(theirs.fingerprint)) +
           "; every machine must have the same data (what is drawn at random must have a seed of its own)";
  return {};
}

void check_alike(const LoaderContext& context, const LoaderFacts& facts) {
  std::string difference;  // the same on all ranks
  {
    const comm::detail::ObjectExchange all(
        *context.group, context.rank, comm::detail::object_call<LoaderFacts>("prepare(data loader)", false), &facts);
    for (int rank = 1; rank < context.group->world_size() && difference.empty(); ++rank)
      difference = difference_of(all.of<LoaderFacts>(0), all.of<LoaderFacts>(rank), rank);
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

// How a loader's parts of this node meet those of the others.
void connect_nodes(comm::RankGroup& group, const SharedParts& shared, const std::string& name,
                   const detail::AnyDataset& dataset) {
  comm::SideTraffic& traffic = group.side_traffic();
  const std::uint64_t loader = traffic.next_number();
  if (shared.channel) return shared.channel->connect(traffic, loader, dataset.bytes);
  shared.planner->on_drawn([&traffic, loader, name](std::uint64_t number, std::int64_t epoch, const EpochSteps& steps) {
    traffic.claim(
        "loop " + std::to_string(number) + " over " + name + ", loader " + std::to_string(loader) + ",",
        "epoch " + std::to_string(epoch) + " in an order whose fingerprint is " + hexadecimal(steps.fingerprint()));
  });
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
  // A stream is one, so with several nodes rank 0 reads it in shard mode too.
  const bool for_all = plan.dispatch || (dataset.iterable() && place.nodes > 1);
  if (dataset.iterable() && !for_all && plan.ranks > 1)
    shared->stream = make_stream_reader(dataset, plan, false, seed, &token);
  // Deep enough for what the workers read ahead, and one more: a rank that is scheduled late does not stop rank 0.
  if (for_all) {
    const std::size_t depth = (read_ahead_depth(options) + 1) * static_cast<std::size_t>(plan.ranks / ranks);
    shared->channel = std::make_shared<DispatchChannel>(place, depth, token);
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
  const comm::NodePlace& place = context.group->place();
  EpochPlanOptions plan;
  LoaderFacts facts;
  check_together(context, [&] {
    check_options(options, dataset.iterable());
    require(context.shards == 1 || options.in_order,
            "in_order = false in exact mode, whose batches come in the order of their logical shards; leave it on");
    plan = plan_options(options, configuration, dataset.length(), dataset.iterable(),
                        context.group->world_size() * context.shards);
    require(place.nodes == 1 || !(plan.dispatch || dataset.iterable()) || dataset.bytes.add,
            "batches of " + c10::demangle(dataset.batch_type->name()) +
                " cannot be sent to other machines; give tensors, numbers, strings and standard containers of them, or "
                "write to_bytes and from_bytes for it (tandem/comm/object_bytes.h)");
    // Where rank 0 reads for all, the others' data does not matter.
    const bool reads = !plan.dispatch && place.nodes > 1 && context.rank == place.first_rank;
    facts = {.plan = plan,
             .seed = seed,
             .sample_type = c10::demangle(dataset.sample_type->name()),
             .batch_type = c10::demangle(dataset.batch_type->name()),
             .fingerprint = reads && dataset.fingerprint && plan.length > 0 ? dataset.fingerprint() : 0,
             .node = place.node};
  });
  check_alike(context, facts);
  context.name = name_of_loader(dataset, plan);
  context.non_blocking = options.non_blocking.value_or(context.non_blocking);
  context.pin_memory = options.pin_memory;
  std::shared_ptr<const SharedParts> shared;
  check_together(context, [&] {
    if (context.rank == place.first_rank)
      shared = make_shared_parts(options, dataset, configuration, seed, plan, place, context.group->token());
  });
  if (place.nodes > 1 && context.rank == place.first_rank)
    connect_nodes(*context.group, *shared, context.name, dataset);
  shared = share_from_main(context, *dataset.batch_type, shared);
  return make_loader(options, dataset, std::move(shared), seed, std::move(context));
}

}  // namespace tandem::data
