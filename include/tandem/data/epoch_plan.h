#pragma once

#include <cstdint>
#include <vector>

namespace tandem::data {

/// What decides which sample goes to which rank in which step.
struct EpochPlanOptions {
  std::int64_t length = 0;      ///< samples in the dataset
  std::int64_t batch_size = 1;  ///< of a rank, or of all ranks with split_batches
  int ranks = 1;                ///< that divide the epoch
  bool drop_last = false;       ///< leave out what does not fill a global batch
  bool even_batches = true;     ///< shard mode: repeat samples so that all ranks get as many
  bool split_batches = false;   ///< batch_size is the global one
  bool dispatch = false;        ///< rank 0 reads for all
};

/// The plan of an epoch over a map-style dataset: a pure function of its options that can be asked for any step in
/// constant time. It speaks of positions 0 .. length-1 in the epoch's order; the order itself is the sampler's.
///
/// Source: HuggingFace Accelerate's BatchSamplerShard and DataLoaderDispatcher, by rule.
class EpochPlan {
 public:
  /// Throws ConfigError when an option is out of range or split_batches does not divide by the ranks.
  explicit EpochPlan(EpochPlanOptions options);

  const EpochPlanOptions& options() const { return options_; }  ///< as given

  /// Samples of a full step of all ranks.
  std::int64_t global_batch_size() const { return global_; }

  /// Steps of an epoch for `rank`. Ranks differ only in shard mode without even_batches.
  std::int64_t steps(int rank) const;

  /// What the prepared loader of `rank` reports as its length. As in Accelerate it is that of all ranks with
  /// split_batches, even where an uneven rank gets one step fewer.
  std::int64_t len(int rank) const;

  /// How many samples `rank` gets in `step` (0 <= step < steps(rank)).
  std::int64_t samples(std::int64_t step, int rank) const;

  /// Positions in the epoch's order that `rank` gets in `step` (0 <= step < steps(rank)).
  std::vector<std::int64_t> positions(std::int64_t step, int rank) const;

  /// Real (not repeated) samples in the last step of all ranks, as gather_for_metrics needs it; 0 when the last step
  /// is full, -1 when nothing is to be cut because drop_last left the rest out (semantics of Accelerate's `remainder`).
  std::int64_t remainder() const;

 private:
  std::vector<std::int64_t> shard_tail(int rank) const;
  std::vector<std::int64_t> dispatch_tail(std::int64_t step, int rank) const;

  EpochPlanOptions options_;
  std::int64_t global_;    // samples of a full step of all ranks
  std::int64_t per_rank_;  // samples of a full step of one rank
  std::int64_t full_;      // full steps
  std::int64_t tail_;      // samples after them
};

}  // namespace tandem::data
