#pragma once

#include <cstdint>
#include <memory>

#include "tandem/data/sampler.h"

namespace tandem::data {

/// One rank's part of another batch sampler, for a loop that reads by itself; a prepared loader does the same for all
/// of its ranks. Whole batches are dealt round-robin, whatever their size.
///
///     BatchSamplerShard mine(whole, world_size, rank);
///     for (const auto& indices : mine.batches(epoch)) …
///
/// Source: HuggingFace Accelerate's BatchSamplerShard, by rule.
class BatchSamplerShard final : public BatchSampler {
 public:
  /// `whole` must give the same batches on every rank: what it draws from the default generators depends on `seed` and
  /// the epoch only. With `even_batches` the last round is completed with the epoch's first batches, otherwise ranks
  /// differ by a batch. Throws ConfigError when `whole` is null or there is no rank `rank` of `ranks`.
  BatchSamplerShard(std::shared_ptr<BatchSampler> whole, int ranks, int rank, bool even_batches = true,
                    std::uint64_t seed = 0);

  std::int64_t size() const override;

  /// Throws DataError when `whole` gives an empty batch.
  Batches batches(std::int64_t epoch) override;

 private:
  std::shared_ptr<BatchSampler> whole_;
  int ranks_, rank_;
  bool even_batches_;
  std::uint64_t seed_;
};

}  // namespace tandem::data
