#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "tandem/data/dataset_access.h"
#include "tandem/data/step_planner.h"
#include "tandem/data/stream_reader.h"

namespace tandem::data {

/// A step with its batches: one a rank where rank 0 reads for all, otherwise the reading rank's only.
template <class Batch>
struct Step {
  StepInfo info;               ///< which step it is
  std::vector<Batch> batches;  ///< by rank, or the only one
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
    if (set_epoch_) {
      const rng::KeyedGenerator generator(seed_, start.epoch, kBeginning);
      set_epoch_(start.epoch);
    }
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

/// Steps over an iterable dataset.
template <class Sample, class Batch>
class StreamSteps final : public StepSource<Batch> {
 public:
  using Collate = std::function<Batch(std::vector<Sample>)>;  ///< makes a batch of samples

  /// Takes the part of `reader`, one of those that `stream` is read for.
  StreamSteps(std::shared_ptr<StreamReader<Sample>> stream, int reader, std::uint64_t seed, Collate collate)
      : stream_(std::move(stream)), reader_(reader), seed_(seed), collate_(std::move(collate)) {}

  ~StreamSteps() override { stream_->leave(reader_, number_); }

  void start(const EpochStart& start) override {
    number_ = start.number;
    epoch_ = start.epoch;
    stream_->start(reader_, start);
  }

  typename StepSource<Batch>::Job next() override {
    auto part = stream_->next(reader_);
    if (!part) return {};
    return [this, part = std::move(*part), epoch = epoch_]() mutable {
      Step<Batch> made{part.info, {}};
      for (std::size_t i = 0; i < part.samples.size(); ++i) {
        const rng::KeyedGenerator generator(seed_, epoch, kCollating + part.positions[i]);
        made.batches.push_back(collate_(std::move(part.samples[i])));
      }
      return made;
    };
  }

  std::int64_t remainder() const override { return stream_->remainder(reader_); }

 private:
  const std::shared_ptr<StreamReader<Sample>> stream_;
  const int reader_;
  const std::uint64_t seed_;
  const Collate collate_;
  std::uint64_t number_ = 0;
  std::int64_t epoch_ = 0;
};

}  // namespace tandem::data
