#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/spsc_ring.h"
#include "data/step_source.h"

namespace tandem::data {

/// What rank 0 hands to another rank: a step, or the end of the epoch.
struct Handover {
  std::uint64_t epoch_number;  ///< which of rank 0's epochs it belongs to
  std::int64_t epoch;          ///< that one, as set_epoch counts
  StepInfo info;               ///< which step it is
  detail::AnyBatch batch;      ///< none: the epoch has no step
};

/// The rings through which rank 0 hands batches to the other ranks of one loader.
struct DispatchChannel {
  /// From rank 0 to one other rank.
  using Ring = SpscRing<Handover>;

  /// `depth`: steps that rank 0 may be ahead of another rank.
  DispatchChannel(int ranks, std::size_t depth, CancelToken& token);

  /// That of `rank`, from 1 on.
  Ring& ring(int rank) { return *rings[static_cast<std::size_t>(rank - 1)]; }

  std::vector<std::unique_ptr<Ring>> rings;  ///< of ranks 1, 2, …
};

/// One rank's end of a channel, shared by its loaders that skip some steps: closes it when the last of them goes.
class ChannelEnd {
 public:
  /// The end of `rank`: 0 gives, the others take.
  ChannelEnd(std::shared_ptr<DispatchChannel> channel, int rank);
  ~ChannelEnd();
  ChannelEnd(const ChannelEnd&) = delete;
  ChannelEnd& operator=(const ChannelEnd&) = delete;

  DispatchChannel& operator*() const { return *channel_; }        ///< the channel
  DispatchChannel* operator->() const { return channel_.get(); }  ///< the channel

 private:
  std::shared_ptr<DispatchChannel> channel_;
  int rank_;
};

}  // namespace tandem::data
