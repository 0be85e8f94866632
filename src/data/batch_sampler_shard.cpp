#include "tandem/data/batch_sampler_shard.h"

#include <string>

#include "data/epoch_steps.h"
#include "tandem/core/error.h"
#include "tandem/data/detail/dataset_access.h"
#include "tandem/rng/generators.h"

namespace tandem::data {

BatchSamplerShard::BatchSamplerShard(std::shared_ptr<BatchSampler> whole, int ranks, int rank, bool even_batches,
                                     std::uint64_t seed)
    : whole_(std::move(whole)), ranks_(ranks), rank_(rank), even_batches_(even_batches), seed_(seed) {
  if (!whole_) throw ConfigError("a BatchSamplerShard needs a batch sampler, not null");
  if (rank < 0 || rank >= ranks)
    throw ConfigError("there is no rank " + std::to_string(rank) + " among " + std::to_string(ranks) +
                      "; ranks count from 0");
}

std::int64_t BatchSamplerShard::size() const {
  return batches_of_rank(whole_->size(), {.ranks = ranks_, .even_batches = even_batches_}, rank_);
}

BatchSampler::Batches BatchSamplerShard::batches(std::int64_t epoch) {
  const rng::KeyedGenerator generator(seed_, epoch, kBeginning);
  const BatchSampledSteps steps(whole_->batches(epoch), {.ranks = ranks_, .even_batches = even_batches_});
  Batches mine;
  for (std::int64_t step = 0; step < steps.steps(rank_); ++step) mine.push_back(steps.indices(step, rank_));
  return mine;
}

}  // namespace tandem::data
