#pragma once

#include <any>
#include <cstdint>
#include <memory>

#include "tandem/data/detail/sample_window.h"
#include "tandem/data/detail/step_info.h"
#include "tandem/data/epoch_plan.h"

namespace tandem::data {

/// Deals one epoch of a stream of samples out to ranks, step by step, by the rules of EpochPlan, whose length is known
/// only at the end. Reads one step ahead, to know which is the last.
class IterableDatasetShard {
 public:
  /// `options.length` is not used. Throws ConfigError when the options do not go together.
  IterableDatasetShard(EpochPlanOptions options, std::unique_ptr<detail::SampleWindow> window);

  /// Begins epoch `epoch`. What opening the stream and reading it draw depends on `seed`, the epoch, and the place of
  /// the sample in the stream.
  void start(std::uint64_t seed, std::int64_t epoch);

  /// Goes to the next step; false at the end of the epoch.
  bool advance();

  /// The samples of `rank` in this step, a std::vector of them; none for a rank without one (uneven ranks).
  std::any samples(int rank) const;

  /// How many samples each rank has in this step.
  std::int64_t rows() const { return plan_.samples(step_, 0); }

  /// What `rank` is told of this step; what depends on the stream's length only once its end is known.
  StepInfo info(int rank) const;

  /// EpochPlan::remainder; -1 until the end of the stream is known.
  std::int64_t remainder() const { return ended_ ? plan_.remainder() : -1; }

  /// Samples read from the stream so far.
  std::int64_t samples_read() const { return read_; }

 private:
  bool has_next() const;
  void read_group();
  void end();

  EpochPlanOptions options_;
  EpochPlan plan_;
  std::unique_ptr<detail::SampleWindow> window_;
  std::uint64_t seed_ = 0;
  std::int64_t epoch_ = 0;
  std::int64_t step_ = -1, read_ = 0, upcoming_ = 0;  // samples of the step after this one
  bool ended_ = false;
};

}  // namespace tandem::data
