#pragma once

#include <cstdint>
#include <iterator>
#include <memory>
#include <vector>

#include "data/rank_shards.h"
#include "tandem/data/detail/step_info.h"
#include "tandem/data/epoch_plan.h"
#include "tandem/data/sampler.h"

namespace tandem::data {

/// Which epoch to begin, and where.
struct EpochStart {
  std::uint64_t number = 1;     ///< of the epochs that the rank begins, from 1
  std::int64_t epoch = 0;       ///< from 0
  std::int64_t first_step = 0;  ///< steps before it are skipped
};

/// Which dataset indices each rank gets in each step of one epoch. Any step can be asked for; immutable, and shared by
/// the ranks.
class EpochSteps {
 public:
  virtual ~EpochSteps() = default;

  /// Steps of the epoch for `rank`.
  virtual std::int64_t steps(int rank) const = 0;

  /// Indices of `rank` in `step` (0 <= step < steps(rank)).
  virtual std::vector<std::int64_t> indices(std::int64_t step, int rank) const = 0;

  /// See EpochPlan::remainder.
  virtual std::int64_t remainder() const = 0;

  /// A number, not 0, that is another one for another order, as good as always. Takes as long as the epoch is.
  virtual std::uint64_t fingerprint() const = 0;

  /// Samples of `rank` in `step` (0 <= step < steps(rank)).
  virtual std::int64_t samples(std::int64_t step, int rank) const = 0;

  /// What a rank is told of its sub-step `sub_step` of `step`, which it has.
  StepInfo info(std::int64_t step, const RankShards& shards, int sub_step) const;

 private:
  std::int64_t rows(std::int64_t step, int first, int last) const;
};

/// Steps of a sampler's order.
class SampledSteps final : public EpochSteps {
 public:
  /// Divides `order`, of `plan.options().length` samples, by `plan`.
  SampledSteps(EpochPlan plan, EpochOrder order) : plan_(std::move(plan)), order_(std::move(order)) {}

  std::int64_t steps(int rank) const override { return plan_.steps(rank); }
  std::int64_t samples(std::int64_t step, int rank) const override { return plan_.samples(step, rank); }
  std::vector<std::int64_t> indices(std::int64_t step, int rank) const override;
  std::int64_t remainder() const override { return plan_.remainder(); }
  std::uint64_t fingerprint() const override;

 private:
  EpochPlan plan_;
  EpochOrder order_;
};

/// How many of a batch sampler's `batches` batches `rank` gets in an epoch, by ranks, even_batches and dispatch of
/// `options`.
std::int64_t batches_of_rank(std::int64_t batches, const EpochPlanOptions& options, int rank);

/// Steps of a batch sampler, whose batches are dealt round-robin. In shard mode with even_batches the last round is
/// completed with the epoch's first batches; in dispatch mode a round is joined and split evenly (what does not divide
/// is left out), or handed over batch by batch when all are of one size.
class BatchSampledSteps final : public EpochSteps {
 public:
  /// Uses ranks, even_batches and dispatch of `options`. Throws DataError when a batch is empty.
  BatchSampledSteps(BatchSampler::Batches batches, EpochPlanOptions options);

  std::int64_t steps(int rank) const override;
  std::int64_t samples(std::int64_t step, int rank) const override { return std::ssize(indices(step, rank)); }
  std::vector<std::int64_t> indices(std::int64_t step, int rank) const override;
  std::int64_t remainder() const override;
  std::uint64_t fingerprint() const override;

 private:
  std::vector<std::int64_t> round(std::int64_t step) const;
  std::vector<std::int64_t> dispatched(std::int64_t step, int rank) const;

  BatchSampler::Batches batches_;
  EpochPlanOptions options_;
  std::int64_t rounds_;  // the last may be incomplete
};

}  // namespace tandem::data
