#include "data/data_loader_dispatcher.h"

#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "tandem/core/error.h"

namespace tandem::data {

DataLoaderDispatcher::DataLoaderDispatcher(LoaderContext context, LoaderParts parts, std::shared_ptr<ChannelEnd> end)
    : LoaderBase(std::move(context), parts.shared->planner, parts.shared->global_batch_size),
      parts_(std::move(parts)),
      end_(std::move(end)) {
  if (this->context().rank == 0)
    feeder_.emplace(parts_.make_source(), parts_.shared->pool, parts_.ahead, this->context().group->token());
}

std::shared_ptr<LoaderBase> DataLoaderDispatcher::skip_first_batches(std::int64_t steps) {
  auto skipping = std::make_shared<DataLoaderDispatcher>(context(), parts_, end_);
  share_epochs_with(*skipping, steps);
  return skipping;
}

void DataLoaderDispatcher::begin_epoch(const EpochStart& start) {
  own_.clear();
  failure_ = nullptr;
  read_all_ = false;
  ended_ = false;
  remainder_ = -1;
  epoch_ = start.epoch;
  if (feeder_) feeder_->start(start);
}

void DataLoaderDispatcher::end_epoch() {
  own_.clear();
  if (feeder_) feeder_->stop();
}

bool DataLoaderDispatcher::ready() {
  if (!feeder_) return ended_ || (*end_)->ready(context().rank);
  const bool readable = !parts_.shared->pool || feeder_->ready();
  return !own_.empty() || read_all_ || failure_ || (readable && everybody_has_room());
}

// Rank 0: hands out one step that it needs itself, and those after it that are there, as far as there is room.
std::optional<RankStep> DataLoaderDispatcher::feed_and_take() {
  if (own_.empty() && failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  if (own_.empty() && !read_all_) hand_out(feeder_->take());
  try {
    while (!read_all_ && !failure_ && feeder_->ready() && everybody_has_room()) hand_out(feeder_->take());
  } catch (...) {
    failure_ = std::current_exception();
  }
  if (own_.empty()) return std::nullopt;
  std::optional<RankStep> mine(std::move(own_.front()));
  own_.pop_front();
  return mine;
}

bool DataLoaderDispatcher::everybody_has_room() const {
  const auto each = static_cast<std::size_t>(context().shards);
  return own_.size() < parts_.ahead.depth * each && (*end_)->has_room(each);
}

void DataLoaderDispatcher::hand_out(std::optional<Step> step) {
  read_all_ = !step || step->info.last;
  // Only an epoch without a step is announced as such: otherwise all know by the last step.
  const StepInfo info = step ? step->info : StepInfo{.remainder = feeder_->remainder()};
  comm::RankGroup::WaitScope waiting(*context().group, 0, "to hand a batch to a rank that lags behind");
  const int ranks = parts_.shared->ranks;
  if (!step)
    for (int rank = 1; rank < ranks; ++rank) (*end_)->push(rank, {epoch_number(), epoch_, info, {}});
  for (int sub_step = 0; step && sub_step < context().shards; ++sub_step) hand_out(*step, sub_step);
}

void DataLoaderDispatcher::hand_out(Step& step, int sub_step) {
  const int ranks = parts_.shared->ranks;
  const std::int64_t rows = step.rows * ranks;
  const StepInfo info = info_of_sub_step(step.info, sub_step, context().shards, sub_step * rows, rows);
  const auto batch_of = [&](int rank) {
    return std::move(step.batches[static_cast<std::size_t>(sub_step * ranks + rank)]);
  };
  for (int rank = 1; rank < ranks; ++rank) (*end_)->push(rank, {epoch_number(), epoch_, info, batch_of(rank)});
  own_.push_back({info, batch_of(0)});
}

std::optional<RankStep> DataLoaderDispatcher::receive() {
  if (ended_) return std::nullopt;
  const int rank = context().rank;
  comm::RankGroup::WaitScope waiting(*context().group, rank, "for a batch from rank 0");
  while (auto item = (*end_)->pop(rank)) {
    if (item->epoch_number < epoch_number()) continue;  // of an epoch that this rank left early
    if (item->epoch_number > epoch_number())
      throw CollectiveError("rank 0 left an epoch of a dispatching loader before rank " + std::to_string(rank) +
                            " did; all ranks must leave it at the same step");
    if (item->epoch != epoch_) throw_other_epoch(item->epoch, epoch_);
    ended_ = !item->batch || item->info.ends_epoch();
    remainder_ = item->info.remainder;
    if (!item->batch) return std::nullopt;
    return RankStep{item->info, std::move(item->batch)};
  }
  // Rank 0 may be failing, which the token is about to say, and that is what counts.
  const int limit = context().group->place().node == 0 ? 500 : 2000;  // of another node, which is told in a second
  for (int waited = 0; waited < limit; ++waited) {
    context().group->token().check();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  throw CollectiveError("rank 0 gave up a dispatching loader that rank " + std::to_string(rank) +
                        " still reads from; all ranks must use it alike");
}

}  // namespace tandem::data
