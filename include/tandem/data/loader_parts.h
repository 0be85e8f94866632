#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "tandem/core/spsc_ring.h"
#include "tandem/data/read_ahead.h"

namespace tandem::data {

/// What rank 0 hands to another rank: a step, or the end of the epoch.
template <class Batch>
struct Handover {
  std::uint64_t epoch_number;  ///< which of rank 0's epochs it belongs to
  std::int64_t epoch;          ///< that one, as set_epoch counts
  /// The step that it is.
  StepInfo info;
  std::unique_ptr<Batch> batch;  ///< null: the epoch has no step
};

/// The rings through which rank 0 hands batches to the other ranks of one loader.
template <class Batch>
struct DispatchChannel {
  /// From rank 0 to one other rank.
  using Ring = SpscRing<Handover<Batch>>;

  /// `depth`: steps that rank 0 may be ahead of another rank.
  DispatchChannel(int ranks, std::size_t depth, CancelToken& token) {
    for (int rank = 1; rank < ranks; ++rank) rings.push_back(std::make_unique<Ring>(depth, token));
  }

  /// That of `rank`, from 1 on.
  Ring& ring(int rank) { return *rings[static_cast<std::size_t>(rank - 1)]; }

  std::vector<std::unique_ptr<Ring>> rings;  ///< of ranks 1, 2, …
};

/// One rank's end of a channel, shared by its loaders that skip some steps: closes it when the last of them goes.
template <class Batch>
class ChannelEnd {
 public:
  /// The end of `rank`: 0 gives, the others take.
  ChannelEnd(std::shared_ptr<DispatchChannel<Batch>> channel, int rank) : channel_(std::move(channel)), rank_(rank) {}
  ~ChannelEnd() {
    if (rank_ > 0)
      channel_->ring(rank_).close_consumer();
    else
      for (auto& ring : channel_->rings) ring->close_producer();
  }
  ChannelEnd(const ChannelEnd&) = delete;
  ChannelEnd& operator=(const ChannelEnd&) = delete;

  DispatchChannel<Batch>& operator*() const { return *channel_; }        ///< the channel
  DispatchChannel<Batch>* operator->() const { return channel_.get(); }  ///< the channel

 private:
  std::shared_ptr<DispatchChannel<Batch>> channel_;
  int rank_;
};

/// What all ranks of one prepared loader share.
template <class Batch>
struct SharedParts {
  EpochPlanOptions plan;                         ///< the length is 0 for an iterable
  bool iterable = false;                         ///< the dataset is
  std::shared_ptr<StepPlanner> planner;          ///< null for an iterable
  std::int64_t global_batch_size = 0;            ///< samples of a full step of all ranks; 0: batches of different sizes
  std::shared_ptr<WorkerPool> pool;              ///< null: ranks read when they need a batch
  std::shared_ptr<AnyStreamReader> stream = {};  ///< of an iterable that several ranks take parts of; otherwise null
};

/// Closes the stream that ranks share when the last of rank 0's loaders goes: it is made of rank 0's dataset.
class StreamEnd {
 public:
  /// `stream` may be null.
  explicit StreamEnd(std::shared_ptr<AnyStreamReader> stream) : stream_(std::move(stream)) {}
  ~StreamEnd() {
    if (stream_) stream_->close();
  }
  StreamEnd(const StreamEnd&) = delete;
  StreamEnd& operator=(const StreamEnd&) = delete;

 private:
  std::shared_ptr<AnyStreamReader> stream_;
};

/// What one rank's loader is made of.
template <class Batch>
struct LoaderParts {
  std::shared_ptr<const SharedParts<Batch>> shared;                 ///< by all ranks
  std::function<std::unique_ptr<StepSource<Batch>>()> make_source;  ///< what reads, of this rank's own
  ReadAheadOptions ahead;                                           ///< how far it may
  std::shared_ptr<StreamEnd> end = {};                              ///< of rank 0's loaders
};

}  // namespace tandem::data
