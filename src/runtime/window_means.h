// Means over accumulation windows: Accelerator::window_mean.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "runtime/rank_context.h"

namespace tandem {

/// The sum over the logical shards of one number of each: `mine` has those of this rank, by sub-step. Adds up by the
/// tree of ExactGradients; without exact mode in rank order. The same bits on all ranks. Collective.
double sum_over_shards(RankContext& context, const char* operation, const std::vector<double>& mine);

/// One rank's.
class WindowMeans {
 public:
  /// `context` outlives it.
  explicit WindowMeans(RankContext& context) : context_(context) {}

  /// As Accelerator::window_mean.
  std::optional<double> add(double value, double weight);

  /// The next call is the first of a micro-batch.
  void begin_micro_batch() { next_ = 0; }

 private:
  struct Value {
    std::vector<double> sums, weights;  // by sub-step
  };

  RankContext& context_;
  std::vector<Value> values_;  // in the order of the calls in a micro-batch
  std::size_t next_ = 0;
};

}  // namespace tandem
