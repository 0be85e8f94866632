#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tandem/data/dataset_access.h"
#include "tandem/data/step_planner.h"

namespace tandem::data {

/// A step with its batches: one a rank where rank 0 reads for all, otherwise the reading rank's only.
template <class Batch>
struct Step {
  StepInfo info;               ///< which step it is
  std::vector<Batch> batches;  ///< by rank, or the only one
};

/// Which epoch to begin, and where.
struct EpochStart {
  std::uint64_t number = 1;     ///< of the epochs that the rank begins, from 1
  std::int64_t epoch = 0;       ///< from 0
  std::int64_t first_step = 0;  ///< steps before it are skipped
};

/// Makes the steps of epochs out of a dataset.
template <class Batch>
class StepSource {
 public:
  /// Makes one step; may run on any thread, at the same time as others and as `next`.
  using Job = std::function<Step<Batch>()>;

  virtual ~StepSource() = default;

  /// Begins an epoch.
  virtual void start(const EpochStart& start) = 0;

  /// What makes the next step; nothing at the end of the epoch. May run on any thread, one call at a time.
  virtual Job next() = 0;

  /// EpochPlan::remainder of the epoch; -1 while it is not known.
  virtual std::int64_t remainder() const = 0;
};

/// Reads the samples with these indices as one batch.
template <class Batch>
using ReadBatch = std::function<Batch(const std::vector<std::int64_t>&, const ReadContext&)>;

/// Rows [begin, end) of a batch, as views.
template <class Batch>
using SliceBatch = std::function<Batch(const Batch&, std::int64_t begin, std::int64_t end)>;

/// Steps over a map-style dataset.
template <class Batch>
class MapSteps final : public StepSource<Batch> {
 public:
  /// Reads for `rank`, or where the planner's plan dispatches for all ranks. `slice` divides a batch that was read for
  /// all ranks (split_batches). `set_epoch` tells the dataset which epoch begins; may be null.
  MapSteps(std::shared_ptr<StepPlanner> planner, int rank, std::uint64_t seed, ReadBatch<Batch> read,
           SliceBatch<Batch> slice, std::function<void(std::int64_t)> set_epoch)
      : planner_(std::move(planner)),
        rank_(rank),
        seed_(seed),
        read_(std::move(read)),
        slice_(std::move(slice)),
        set_epoch_(std::move(set_epoch)) {}

  void start(const EpochStart& start) override {
    if (set_epoch_) set_epoch_(start.epoch);
    steps_ = planner_->begin(start.number, start.epoch);
    epoch_ = start.epoch;
    step_ = start.first_step;
  }

  typename StepSource<Batch>::Job next() override {
    if (step_ >= steps_->steps(rank_)) return {};
    // Jobs end before the source does; the steps may be another epoch's by then.
    return [this, steps = steps_, epoch = epoch_, step = step_++] { return make(*steps, epoch, step); };
  }

  std::int64_t remainder() const override { return steps_->remainder(); }

 private:
  Step<Batch> make(const EpochSteps& steps, std::int64_t epoch, std::int64_t step) const {
    Step<Batch> made{steps.info(step, rank_), {}};
    const EpochPlanOptions& plan = planner_->options();
    ReadContext context{.seed = seed_, .epoch = epoch, .step = step, .rank = rank_};
    if (!plan.dispatch) {
      made.batches.push_back(read_(steps.indices(step, rank_), context));
    } else if (plan.split_batches && plan.ranks > 1) {
      read_for_all(made, steps, context);
    } else {
      for (context.rank = 0; context.rank < plan.ranks; ++context.rank)
        made.batches.push_back(read_(steps.indices(step, context.rank), context));
    }
    return made;
  }

  // One batch for all ranks, of which each gets a view.
  void read_for_all(Step<Batch>& made, const EpochSteps& steps, const ReadContext& context) const {
    std::vector<std::int64_t> indices;
    for (int rank = 0; rank < planner_->options().ranks; ++rank) {
      const auto part = steps.indices(context.step, rank);
      indices.insert(indices.end(), part.begin(), part.end());
    }
    const Batch batch = read_(indices, context);
    const auto each = static_cast<std::int64_t>(indices.size()) / planner_->options().ranks;
    for (int rank = 0; rank < planner_->options().ranks; ++rank)
      made.batches.push_back(slice_(batch, rank * each, (rank + 1) * each));
  }

  const std::shared_ptr<StepPlanner> planner_;
  const int rank_;
  const std::uint64_t seed_;
  const ReadBatch<Batch> read_;
  const SliceBatch<Batch> slice_;
  const std::function<void(std::int64_t)> set_epoch_;
  std::shared_ptr<const EpochSteps> steps_;
  std::int64_t epoch_ = 0, step_ = 0;
};

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

/// Steps over an iterable dataset.
template <class Sample, class Batch>
class StreamSteps final : public StepSource<Batch> {
 public:
  using OpenStream = std::function<SampleStream<Sample>(std::int64_t epoch)>;  ///< the samples of an epoch
  using Collate = std::function<Batch(std::vector<Sample>)>;                   ///< makes a batch of samples

  /// Reads for `rank`, or where `plan` dispatches for all ranks.
  StreamSteps(EpochPlanOptions plan, int rank, std::uint64_t seed, OpenStream open, Collate collate)
      : plan_(plan), rank_(rank), seed_(seed), open_(std::move(open)), collate_(std::move(collate)), shard_(plan) {}

  void start(const EpochStart& start) override {
    context_ = {.seed = seed_, .epoch = start.epoch, .step = 0, .rank = rank_};
    read_with_context([&] {
      shard_.start(keyed(open_(start.epoch)));
      for (std::int64_t step = 0; step < start.first_step && shard_.advance(); ++step) context_.step += 1;
    });
  }

  typename StepSource<Batch>::Job next() override {
    bool more = false;
    read_with_context([&] { more = shard_.advance(); });
    if (!more) return {};
    const StepInfo info = shard_.info(rank_);
    context_.step = info.step + 1;
    std::vector<std::vector<Sample>> samples;
    if (plan_.dispatch)
      for (int rank = 0; rank < plan_.ranks; ++rank) samples.push_back(shard_.samples(rank));
    else
      samples.push_back(shard_.samples(rank_));
    return [this, info, samples = std::move(samples)]() mutable {
      Step<Batch> made{info, {}};
      for (auto& part : samples) made.batches.push_back(collate_(std::move(part)));
      return made;
    };
  }

  std::int64_t remainder() const override { return shard_.remainder(); }

 private:
  // A sample's generator depends on its place in the stream only.
  SampleStream<Sample> keyed(SampleStream<Sample> stream) {
    return [stream = std::move(stream), seed = seed_, epoch = context_.epoch, position = std::int64_t{0}]() mutable {
      const rng::KeyedGenerator generator(seed, epoch, position);
      auto sample = stream();
      position += 1;
      return sample;
    };
  }

  template <class Function>
  void read_with_context(Function function) {
    try {
      function();
    } catch (...) {
      detail::throw_sample_error("sample " + std::to_string(shard_.samples_read()) + " of the stream", context_);
    }
  }

  const EpochPlanOptions plan_;
  const int rank_;
  const std::uint64_t seed_;
  const OpenStream open_;
  const Collate collate_;
  IterableDatasetShard<Sample> shard_;
  ReadContext context_;
};

}  // namespace tandem::data
