#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "tandem/data/epoch_plan.h"
#include "tandem/data/epoch_steps.h"
#include "tandem/data/iterable.h"

namespace tandem::data {

/// Deals a stream of samples out to ranks, step by step, by the rules of EpochPlan, whose length is known only at the
/// end. Reads one step ahead, to know which is the last.
template <class Sample>
class IterableDatasetShard {
 public:
  /// `options.length` is not used. Throws ConfigError when the options do not go together.
  explicit IterableDatasetShard(EpochPlanOptions options) : options_(options), plan_(full_plan(options)) {}

  /// Begins an epoch.
  void start(SampleStream<Sample> stream) {
    stream_ = std::move(stream);
    plan_ = full_plan(options_);
    step_ = -1;
    read_ = 0;
    ended_ = false;
    first_.clear();
    current_.clear();
    upcoming_ = read_group();
  }

  /// Goes to the next step; false at the end of the epoch.
  bool advance() {
    if (!has_next()) return false;
    current_ = std::move(upcoming_);
    step_ += 1;
    if (step_ == 0) first_ = current_;  // padding comes from here
    upcoming_ = read_group();
    return true;
  }

  /// The samples of `rank` in this step; none for a rank without one (uneven ranks).
  std::vector<Sample> samples(int rank) const {
    std::vector<Sample> samples;
    if (step_ >= plan_.steps(rank)) return samples;
    const std::int64_t begin = step_ * plan_.global_batch_size();
    for (const std::int64_t position : plan_.positions(step_, rank))
      samples.push_back(position >= begin ? current_[static_cast<std::size_t>(position - begin)]
                                          : first_[static_cast<std::size_t>(position)]);
    return samples;
  }

  /// What `rank` is told of this step; what depends on the stream's length only once its end is known.
  StepInfo info(int rank) const {
    StepInfo info{.step = step_};
    if (!ended_) return info;
    info.last = step_ + 1 >= plan_.steps(rank);
    info.last_of_all = step_ + 1 >= plan_.steps(0);
    info.remainder = plan_.remainder();
    if (info.last_of_all) info.samples_to_keep = std::max<std::int64_t>(info.remainder, 0);
    return info;
  }

  /// EpochPlan::remainder; -1 until the end of the stream is known.
  std::int64_t remainder() const { return ended_ ? plan_.remainder() : -1; }

  /// Samples read from the stream so far.
  std::int64_t samples_read() const { return read_; }

 private:
  // Until the end is known every step is a full one.
  static EpochPlan full_plan(EpochPlanOptions options) {
    // Iterables are evened out whatever even_batches says, as in Accelerate.
    options.even_batches = true;
    options.length = std::numeric_limits<std::int64_t>::max() / 2;
    return EpochPlan(options);
  }

  bool has_next() const {
    if (upcoming_.empty()) return false;
    return !options_.drop_last || static_cast<std::int64_t>(upcoming_.size()) == plan_.global_batch_size();
  }

  std::vector<Sample> read_group() {
    std::vector<Sample> group;
    while (!ended_ && static_cast<std::int64_t>(group.size()) < plan_.global_batch_size()) {
      if (auto sample = stream_()) {
        group.push_back(std::move(*sample));
        read_ += 1;
      } else {
        end();
      }
    }
    return group;
  }

  void end() {
    ended_ = true;
    EpochPlanOptions options = plan_.options();
    options.length = read_;
    plan_ = EpochPlan(options);
  }

  EpochPlanOptions options_;
  EpochPlan plan_;
  SampleStream<Sample> stream_;
  std::vector<Sample> first_, current_, upcoming_;
  std::int64_t step_ = -1, read_ = 0;
  bool ended_ = false;
};

}  // namespace tandem::data
