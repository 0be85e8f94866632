#pragma once

#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "tandem/data/loader_base.h"
#include "tandem/data/loader_parts.h"

namespace tandem::data {

/// Rank 0 reads all ranks' batches and hands them over through lock-free rings; the others never touch their dataset.
/// What is handed over is the tensors themselves: nothing is copied.
template <class Batch>
class DataLoaderDispatcher final : public LoaderBase<Batch> {
 public:
  /// `end` is this rank's of the channel that all ranks share.
  DataLoaderDispatcher(LoaderContext context, LoaderParts<Batch> parts, std::shared_ptr<ChannelEnd<Batch>> end)
      : LoaderBase<Batch>(std::move(context), parts.shared->planner, parts.shared->global_batch_size),
        parts_(std::move(parts)),
        end_(std::move(end)) {
    if (this->context().rank == 0)
      feeder_.emplace(parts_.make_source(), parts_.shared->pool, parts_.ahead, this->context().group->token());
  }

  ~DataLoaderDispatcher() override { this->leave(); }

  std::unique_ptr<LoaderBase<Batch>> skip_first_batches(std::int64_t steps) override {
    auto skipping = std::make_unique<DataLoaderDispatcher>(this->context(), parts_, end_);
    this->share_epochs_with(*skipping, steps);
    return skipping;
  }

 protected:
  void begin_epoch(const EpochStart& start) override {
    own_.clear();
    failure_ = nullptr;
    read_all_ = false;
    ended_ = false;
    remainder_ = -1;
    epoch_ = start.epoch;
    if (feeder_) feeder_->start(start);
  }

  void end_epoch() override {
    own_.clear();
    if (feeder_) feeder_->stop();
  }

  std::optional<std::pair<StepInfo, Batch>> take() override { return feeder_ ? feed_and_take() : receive(); }

  bool ready() override {
    if (!feeder_) return ended_ || (*end_)->ring(this->context().rank).size() > 0;
    const bool readable = !parts_.shared->pool || feeder_->ready();
    return !own_.empty() || read_all_ || failure_ || (readable && everybody_has_room());
  }

  std::int64_t known_remainder() const override {
    if (feeder_) return feeder_->remainder();
    return remainder_;
  }
  bool reads() const override { return feeder_.has_value(); }

 private:
  // Rank 0: hands out one step that it needs itself, and those after it that are there, as far as there is room.
  std::optional<std::pair<StepInfo, Batch>> feed_and_take() {
    if (own_.empty() && failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    if (own_.empty() && !read_all_) hand_out(feeder_->take());
    try {
      while (!read_all_ && !failure_ && feeder_->ready() && everybody_has_room()) hand_out(feeder_->take());
    } catch (...) {
      failure_ = std::current_exception();
    }
    if (own_.empty()) return std::nullopt;
    auto mine = std::move(own_.front());
    own_.pop_front();
    return mine;
  }

  bool everybody_has_room() const {
    for (const auto& ring : (*end_)->rings)
      if (ring->size() >= ring->capacity()) return false;
    return own_.size() < parts_.ahead.depth;
  }

  void hand_out(std::optional<Step<Batch>> step) {
    read_all_ = !step || step->info.last;
    // Only an epoch without a step is announced as such: otherwise all know by the last step.
    const StepInfo info = step ? step->info : StepInfo{.remainder = feeder_->remainder()};
    comm::RankGroup::WaitScope waiting(*this->context().group, 0, "to hand a batch to a rank that lags behind");
    for (int rank = 1; rank < parts_.shared->plan.ranks; ++rank)
      (*end_)->ring(rank).push(
          {this->epoch_number(), epoch_, info,
           step ? std::make_unique<Batch>(std::move(step->batches[static_cast<std::size_t>(rank)])) : nullptr});
    if (step) own_.emplace_back(step->info, std::move(step->batches.front()));
  }

  std::optional<std::pair<StepInfo, Batch>> receive() {
    if (ended_) return std::nullopt;
    comm::RankGroup::WaitScope waiting(*this->context().group, this->context().rank, "for a batch from rank 0");
    while (auto item = (*end_)->ring(this->context().rank).pop()) {
      if (item->epoch_number < this->epoch_number()) continue;  // of an epoch that this rank left early
      if (item->epoch_number > this->epoch_number())
        throw CollectiveError("rank 0 left an epoch of a dispatching loader before rank " +
                              std::to_string(this->context().rank) + " did; all ranks must leave it at the same step");
      if (item->epoch != epoch_) throw_other_epoch(item->epoch, epoch_);
      ended_ = !item->batch || item->info.last;
      remainder_ = item->info.remainder;
      if (!item->batch) return std::nullopt;
      return std::pair(item->info, std::move(*item->batch));
    }
    throw CollectiveError("rank 0 gave up a dispatching loader that rank " + std::to_string(this->context().rank) +
                          " still reads from; all ranks must use it alike");
  }

  LoaderParts<Batch> parts_;
  std::shared_ptr<ChannelEnd<Batch>> end_;
  std::optional<ReadAhead<Batch>> feeder_;      // on rank 0
  std::deque<std::pair<StepInfo, Batch>> own_;  // rank 0's steps that were handed out to the others already
  std::exception_ptr failure_;                  // rank 0: of a step that comes after those
  bool read_all_ = false;                       // rank 0: the last step was handed out
  bool ended_ = false;                          // other ranks: it has come
  std::int64_t epoch_ = 0;                      // that runs
  std::int64_t remainder_ = -1;                 // other ranks: as far as rank 0 has said
};

}  // namespace tandem::data
