#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "data/epoch_drawer.h"

namespace tandem::data {

/// Throws the DataError of ranks that begin one loader's epoch as `epoch` and as `other`.
[[noreturn]] void throw_other_epoch(std::int64_t epoch, std::int64_t other);

/// Plans the epochs of one loader for all its ranks: each epoch's order is drawn once, by whichever rank begins the
/// epoch first, and shared. Ranks need not be in the same epoch. Any thread.
class StepPlanner {
 public:
  /// For `readers` ranks that begin every epoch (all of them, or rank 0 where it reads for all). `options.length` is
  /// the dataset's. `seed`: of the default generators that `sampler` draws from. Throws ConfigError when the options do
  /// not go together.
  StepPlanner(EpochPlanOptions options, std::shared_ptr<Sampler> sampler, int readers, std::uint64_t seed);

  /// Of batches that `sampler` makes; length and batch_size of the options do not matter then. Throws ConfigError for
  /// split_batches.
  StepPlanner(EpochPlanOptions options, std::shared_ptr<BatchSampler> sampler, int readers, std::uint64_t seed);

  /// What is to be done with each epoch that is drawn, the `number`-th, before anybody begins one.
  void on_drawn(std::function<void(std::uint64_t number, std::int64_t epoch, const EpochSteps&)> on_drawn) {
    on_drawn_ = std::move(on_drawn);
  }

  /// Options of the plan; the length is the sampler's.
  const EpochPlanOptions& options() const { return options_; }

  /// Samples of a full step of all ranks; 0 with a batch sampler, whose batches may differ.
  std::int64_t global_batch_size() const;

  /// Steps of an epoch that `rank` has.
  std::int64_t steps(int rank) const;

  /// What the prepared loader of `rank` reports as its length.
  std::int64_t len(int rank) const;

  /// The steps of the `number`-th epoch (from 1) that a rank begins. Throws what the sampler throws, on each rank, and
  /// DataError when another rank began its `number`-th with another epoch.
  std::shared_ptr<const EpochSteps> begin(std::uint64_t number, std::int64_t epoch);

  /// Where the sampler stands within the `number`-th epoch, which the calling rank has begun. Each rank asks once.
  SamplerPosition position(std::uint64_t number);

  /// Where the `number`-th epoch, which the calling rank has not begun, is to begin.
  SamplerPosition position_before(std::uint64_t number);

  /// A rank took the last sample of its `number`-th epoch. Only the first such call of an epoch counts.
  void exhausted(std::uint64_t number);

  /// Has the `number`-th epoch begin at `position`, in or before epoch `epoch`; does nothing when it has been drawn.
  /// `load` counts such calls of a rank: the last one counts.
  void restore(std::uint64_t number, std::uint64_t load, const SamplerPosition& position, std::int64_t epoch);

 private:
  struct Begun {
    std::int64_t epoch;
    SamplerPosition before, within;
    std::shared_ptr<const EpochSteps> steps;
    std::exception_ptr failure;      // of drawing it
    int left_to_take, left_to_look;  // readers that have not begun it, or asked for its position, yet
  };
  struct Restored {
    std::uint64_t number;
    SamplerPosition position;
    std::int64_t epoch;
  };

  Begun draw(std::uint64_t number, std::int64_t epoch);
  SamplerPosition next_position(std::uint64_t number) const;

  EpochPlanOptions options_;
  std::shared_ptr<Sampler> sampler_;  // one of the two
  std::shared_ptr<BatchSampler> batch_sampler_;
  const int readers_;
  std::function<void(std::uint64_t, std::int64_t, const EpochSteps&)> on_drawn_;
  mutable std::mutex mutex_;  // guards the samplers and all below
  EpochDrawer drawer_;
  std::map<std::uint64_t, Begun> begun_;
  std::uint64_t last_drawn_ = 0, last_exhausted_ = 0, last_load_ = 0;
  std::optional<Restored> restored_;
};

}  // namespace tandem::data
