#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/nodes/exchange.h"
#include "core/spsc_ring.h"
#include "data/step_source.h"
#include "tandem/data/detail/batch_bytes.h"

namespace tandem::comm {
class SideTraffic;
}

namespace tandem::data {

/// What rank 0 hands to another rank: a step, or the end of the epoch.
struct Handover {
  std::uint64_t epoch_number;  ///< which of rank 0's epochs it belongs to
  std::int64_t epoch;          ///< that one, as set_epoch counts
  StepInfo info;               ///< which step it is
  detail::AnyBatch batch;      ///< none: the epoch has no step
};

/// The way on which rank 0 hands batches to the other ranks of one loader: rings within a node, and messages to the
/// rings of another one.
class DispatchChannel {
 public:
  /// This node's part. `depth`: steps that rank 0 may be ahead of a rank of it. `token` outlives it.
  DispatchChannel(const comm::NodePlace& place, std::size_t depth, CancelToken& token);
  ~DispatchChannel();
  DispatchChannel(const DispatchChannel&) = delete;
  DispatchChannel& operator=(const DispatchChannel&) = delete;

  /// Joins it with those of the other nodes, over `traffic`, which outlives it, before anything is handed over.
  /// `number`: of the queues that it has there. `bytes`: how batches are sent.
  void connect(comm::SideTraffic& traffic, std::uint64_t number, const detail::BatchBytes& bytes);

  /// Rank 0: whether `push` would not wait, so many times for each rank.
  bool has_room(std::size_t handovers) const;

  /// Rank 0: hands over, waiting while the rank has no room. What a rank does not want any more is dropped. Throws
  /// Cancelled when the token fires, and DataError for a batch that cannot be sent to the rank's node.
  void push(int rank, Handover handover);

  /// Rank 0 hands over no more.
  void end();

  /// Another rank of this node: takes what was handed over, waiting for it. Nothing when there is no more to come.
  /// Throws Cancelled when the token fires.
  std::optional<Handover> pop(int rank);

  /// Another rank of this node: whether there is something to be taken.
  bool ready(int rank) const { return ring(rank).size() > 0; }

  /// Another rank of this node wants no more.
  void close(int rank);

 private:
  using Ring = SpscRing<Handover>;

  bool is_here(int rank) const { return rank >= first_ && rank < first_ + static_cast<int>(rings_.size()); }
  Ring& ring(int rank) const { return *rings_[static_cast<std::size_t>(rank - first_)]; }
  void send(int rank, Handover handover);
  void receive(int rank, std::string_view message) const;

  const comm::NodePlace place_;
  const int first_;  // of this node's ranks that are handed to
  std::vector<std::unique_ptr<Ring>> rings_;
  std::vector<char> closed_;              // by ring, each written by its rank
  comm::SideTraffic* traffic_ = nullptr;  // null: there are no other nodes
  std::uint64_t number_ = 0;
  detail::BatchBytes bytes_;
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
