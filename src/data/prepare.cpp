#include "tandem/data/prepare.h"

#include <sstream>

namespace tandem::data {
namespace {

std::string to_string(const EpochPlanOptions& plan) {
  std::ostringstream text;
  text << std::boolalpha << "length " << plan.length << ", batch_size " << plan.batch_size << ", drop_last "
       << plan.drop_last;
  return text.str();
}

}  // namespace

std::unique_ptr<Sampler> make_sampler(const DataLoaderOptions& options, const DataLoaderConfiguration& configuration,
                                      std::uint64_t master_seed) {
  if (!options.shuffle) return std::make_unique<SequentialSampler>();
  const std::uint64_t seed = options.seed.value_or(configuration.data_seed.value_or(master_seed));
  if (configuration.use_seedable_sampler) return std::make_unique<SeedableRandomSampler>(seed);
  return std::make_unique<RandomSampler>(seed);
}

void check_same_plan(const LoaderContext& context, const EpochPlanOptions& plan) {
  const auto record = comm::describe_object_call(comm::Operation::prepare, typeid(EpochPlanOptions));
  const comm::RankGroup::Call call(*context.group, context.rank, record, &plan);
  const auto& main = call.payload<EpochPlanOptions>(0);
  if (main.length == plan.length && main.batch_size == plan.batch_size && main.drop_last == plan.drop_last) return;
  throw DataError("a data loader differs between ranks: rank " + std::to_string(context.rank) + " has " +
                  to_string(plan) + ", rank 0 has " + to_string(main));
}

}  // namespace tandem::data
