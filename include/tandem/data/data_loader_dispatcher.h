#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "tandem/core/error.h"
#include "tandem/core/spsc_ring.h"
#include "tandem/data/loader_base.h"

namespace tandem::data {

/// The rings through which rank 0 hands batches to the other ranks of one loader.
template <class Batch>
struct DispatchChannel {
  struct Item {
    std::uint64_t begin_count;  // which epoch of rank 0 it belongs to
    std::int64_t step;
    Batch batch;
  };

  // Deep enough that a rank which is scheduled late does not stop rank 0, shallow enough to bound memory.
  static constexpr std::size_t kDepth = 2;

  explicit DispatchChannel(comm::RankGroup& group) {
    for (int rank = 1; rank < group.world_size(); ++rank)
      rings.push_back(std::make_unique<SpscRing<Item>>(kDepth, group.token()));
  }

  SpscRing<Item>& ring(int rank) { return *rings[static_cast<std::size_t>(rank - 1)]; }

  std::vector<std::unique_ptr<SpscRing<Item>>> rings;  // of ranks 1, 2, …
};

/// Rank 0 reads all ranks' batches and hands them over; the others never touch their dataset.
template <class Batch>
class DataLoaderDispatcher final : public LoaderBase<Batch> {
 public:
  /// Collective.
  DataLoaderDispatcher(LoaderContext context, EpochCursor cursor, ReadBatch<Batch> read)
      : LoaderBase<Batch>(context, std::move(cursor)), read_(std::move(read)), channel_(shared_channel(context)) {}

  ~DataLoaderDispatcher() override {
    const int rank = this->context().rank;
    if (rank > 0)
      channel_->ring(rank).close_consumer();
    else
      for (auto& ring : channel_->rings) ring->close_producer();
  }

  /// Collective.
  std::unique_ptr<LoaderBase<Batch>> skip_first_batches(std::int64_t steps) override {
    return std::make_unique<DataLoaderDispatcher>(this->context(), this->cursor().skipping(steps), read_);
  }

 protected:
  Batch fetch() override { return this->context().rank == 0 ? read_and_hand_out() : receive(); }

 private:
  using Channel = DispatchChannel<Batch>;

  static std::shared_ptr<Channel> shared_channel(const LoaderContext& context) {
    std::shared_ptr<Channel> channel;
    if (context.rank == 0) channel = std::make_shared<Channel>(*context.group);
    const auto record = comm::describe_object_call(comm::Operation::prepare, typeid(Channel));
    const comm::RankGroup::Call call(*context.group, context.rank, record, &channel);
    return call.template payload<std::shared_ptr<Channel>>(0);
  }

  Batch read_and_hand_out() {
    const std::int64_t step = this->cursor().step();
    for (int rank = 1; rank < this->context().group->world_size(); ++rank) {
      Batch batch = read_(this->cursor().indices(rank));
      comm::RankGroup::WaitScope waiting(*this->context().group, 0, "to hand a batch to a rank that lags behind");
      channel_->ring(rank).push({this->begin_count(), step, std::move(batch)});
    }
    return read_(this->cursor().indices(0));
  }

  Batch receive() {
    comm::RankGroup::WaitScope waiting(*this->context().group, this->context().rank, "for a batch from rank 0");
    while (auto item = channel_->ring(this->context().rank).pop()) {
      if (item->begin_count < this->begin_count()) continue;  // of an epoch that this rank left early
      if (item->begin_count == this->begin_count() && item->step == this->cursor().step())
        return std::move(item->batch);
      throw CollectiveError("rank 0 left an epoch of a dispatching loader before rank " +
                            std::to_string(this->context().rank) + " did; all ranks must leave it at the same step");
    }
    throw CollectiveError("rank 0 gave up a dispatching loader that rank " + std::to_string(this->context().rank) +
                          " still reads from; all ranks must use it alike");
  }

  ReadBatch<Batch> read_;
  std::shared_ptr<Channel> channel_;
};

}  // namespace tandem::data
