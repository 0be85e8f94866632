#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "tandem/data/epoch_steps.h"

namespace tandem::data {

/// Plans the epochs of one loader for all its ranks: each epoch's order is drawn once, by whichever rank begins the
/// epoch first, and shared. Ranks need not be in the same epoch. Any thread.
class StepPlanner {
 public:
  /// For `readers` ranks that begin every epoch (all of them, or rank 0 where it reads for all). `options.length` is
  /// the dataset's. Throws ConfigError when the options do not go together.
  StepPlanner(EpochPlanOptions options, std::shared_ptr<Sampler> sampler, int readers);

  /// The same for batches that `sampler` makes; length and batch_size of the options do not matter then. Throws
  /// ConfigError for split_batches.
  StepPlanner(EpochPlanOptions options, std::shared_ptr<BatchSampler> sampler, int readers);

  /// Options of the plan; the length is the sampler's.
  const EpochPlanOptions& options() const { return options_; }

  /// Samples of a full step of all ranks; 0 with a batch sampler, whose batches may differ.
  std::int64_t global_batch_size() const;

  /// Steps of an epoch that `rank` has.
  std::int64_t steps(int rank) const;

  /// What the prepared loader of `rank` reports as its length.
  std::int64_t len(int rank) const;

  /// The steps of the `number`-th epoch (from 1) that a rank begins. Throws what the sampler throws, and DataError when
  /// another rank began its `number`-th with another epoch.
  std::shared_ptr<const EpochSteps> begin(std::uint64_t number, std::int64_t epoch);

  /// A rank took the last sample of its `number`-th epoch. Only the first such call of an epoch counts.
  void exhausted(std::uint64_t number);

  /// State of the sampler's generator before the `number`-th epoch is, or was, drawn; undefined when it has none.
  at::Tensor state_before(std::uint64_t number);

  /// Gives the sampler's generator `state` before the `number`-th epoch is drawn; does nothing when it has been.
  void restore(std::uint64_t number, const at::Tensor& state);

 private:
  struct Begun {
    std::int64_t epoch;
    at::Tensor state_before;
    std::shared_ptr<const EpochSteps> steps;
    int left_to_take;  // readers that have not begun it yet
  };

  std::shared_ptr<const EpochSteps> draw(std::int64_t epoch);

  EpochPlanOptions options_;
  std::shared_ptr<Sampler> sampler_;  // one of the two
  std::shared_ptr<BatchSampler> batch_sampler_;
  const int readers_;
  std::mutex mutex_;  // guards the samplers and all below
  std::map<std::uint64_t, Begun> begun_;
  std::uint64_t last_exhausted_ = 0;
};

}  // namespace tandem::data
