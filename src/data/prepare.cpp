#include "tandem/data/prepare.h"

#include <atomic>
#include <sstream>

#include <c10/util/Type.h>

#include "tandem/comm/agree.h"

namespace tandem::data {
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

std::shared_ptr<StepPlanner> make_planner(const DataLoaderOptions& options,
                                          const DataLoaderConfiguration& configuration, std::uint64_t seed,
                                          const EpochPlanOptions& plan) {
  if (options.shuffle && plan.length == 0)
    throw DataError("an empty dataset cannot be shuffled; give it samples or set shuffle = false");
  const int readers = plan.dispatch ? 1 : plan.ranks;
  if (options.batch_sampler) return std::make_shared<StepPlanner>(plan, options.batch_sampler, readers, seed);
  return std::make_shared<StepPlanner>(plan, make_sampler(options, configuration, seed), readers, seed);
}

std::size_t read_ahead_depth(const DataLoaderOptions& options) {
  return static_cast<std::size_t>(std::max(options.workers * options.prefetch, 1));
}

std::shared_ptr<WorkerPool> make_worker_pool(const DataLoaderOptions& options, CancelToken& token) {
  if (options.workers == 0) return nullptr;
  return std::make_shared<WorkerPool>(options.workers, "loader", token, options.worker_init);
}

void check_same_plan(const LoaderContext& context, const EpochPlanOptions& plan) {
  const auto record = comm::describe_object_call(comm::Operation::prepare, typeid(EpochPlanOptions));
  std::string difference;  // the same on all ranks
  {
    const comm::RankGroup::Call call(*context.group, context.rank, record, &plan);
    const auto& main = call.payload<EpochPlanOptions>(0);
    for (int rank = 1; rank < context.group->world_size() && difference.empty(); ++rank) {
      const auto& theirs = call.payload<EpochPlanOptions>(rank);
      if (main.length != theirs.length || main.batch_size != theirs.batch_size || main.drop_last != theirs.drop_last)
        difference = "rank " + std::to_string(rank) + " has " + to_string(theirs) + ", rank 0 has " + to_string(main);
    }
  }
  if (!difference.empty()) throw DataError("a data loader differs between ranks: " + difference);
}

void check_together(const LoaderContext& context, const std::function<void()>& check) {
  comm::check_together(*context.group, context.rank, {.operation = comm::Operation::prepare}, check);
}

std::string name_of_loader(const std::type_info& dataset, const EpochPlanOptions& plan, bool iterable) {
  return "the data loader of " + (iterable ? "" : std::to_string(plan.length) + " samples of ") +
         c10::demangle(dataset.name()) + " (batch_size " + std::to_string(plan.batch_size) + ")";
}

void throw_overtaken(const std::string& loader) {
  throw DataError("a loop over " + loader +
                  " cannot go on, because another loop over it was begun within: it ended the epoch. Prepare another "
                  "loader of the DataLoader for the inner loop");
}

std::uint64_t next_loader_number() noexcept {
  static std::atomic<std::uint64_t> numbers{0};
  return numbers.fetch_add(1, std::memory_order_relaxed) + 1;
}

void check_loader_state(const LoaderState& state, std::int64_t global_batch_size) {
  if (state.epoch < 0 || state.step < 0)
    throw ConfigError("a loader's state has epoch " + std::to_string(state.epoch) + " and step " +
                      std::to_string(state.step) + "; they are 0 or more");
  if (state.global_batch_size != global_batch_size)
    throw ConfigError("a loader's state comes from a global batch of " + std::to_string(state.global_batch_size) +
                      " samples, this loader has " + std::to_string(global_batch_size) +
                      "; keep the global batch when the number of ranks changes");
}

}  // namespace tandem::data
