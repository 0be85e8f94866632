// What nodes send each other bytes through. Needs no LibTorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "tandem/core/error.h"

namespace tandem::comm {

/// A node cannot be reached any more, or has sent what it should not.
class LinkError : public CollectiveError {
 public:
  /// `node` is the one to blame.
  LinkError(int node, const std::string& what) : CollectiveError(what), node_(node) {}

  int node() const noexcept { return node_; }  ///< the one to blame

 private:
  int node_;
};

class FramePool;

/// The bytes of one message, in memory that is used again: they are zeros, or an earlier message's of the same pool,
/// before they are written.
class Frame {
 public:
  static constexpr std::size_t kMostBytes = 1024 * 1024;  ///< of a message
  static constexpr std::size_t kEnvelope = 64;            ///< bytes before and behind a message that belong to its link

  /// No memory: to be assigned to.
  Frame() = default;

  std::span<std::byte> bytes() { return {storage_->message, size_}; }              ///< aligned to 64 bytes
  std::span<const std::byte> bytes() const { return {storage_->message, size_}; }  ///< aligned to 64 bytes

  /// Gives the message another length. Throws Error when that is more than kMostBytes.
  void resize(std::size_t bytes) {
    if (bytes > kMostBytes) throw Error("a message of " + std::to_string(bytes) + " bytes is too long for a frame");
    size_ = bytes;
  }

  std::byte* with_envelope() { return storage_->before; }  ///< kEnvelope + kMostBytes + kEnvelope bytes

 private:
  friend class FramePool;
  struct alignas(64) Storage {
    std::byte before[kEnvelope], message[kMostBytes], after[kEnvelope];
  };
  struct Return {
    FramePool* pool;
    void operator()(Storage* storage) const noexcept;
  };
  std::unique_ptr<Storage, Return> storage_;
  std::size_t size_ = 0;
};

/// Memory for frames, which have to go before it. May be called from any thread.
class FramePool {
 public:
  /// An empty frame.
  Frame take() {
    Frame frame;
    const std::lock_guard lock(mutex_);
    if (spare_.empty()) spare_.push_back(std::make_unique<Frame::Storage>());
    frame.storage_ = {spare_.back().release(), Frame::Return{this}};
    spare_.pop_back();
    return frame;
  }

 private:
  friend struct Frame::Return;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Frame::Storage>> spare_;
};

inline void Frame::Return::operator()(Storage* storage) const noexcept {
  std::unique_ptr<Storage> owner(storage);
  const std::lock_guard lock(pool->mutex_);
  pool->spare_.push_back(std::move(owner));
}

/// What a message is part of. Messages of one channel from one node to another arrive in the order in which they were
/// sent.
enum class Channel : std::uint8_t {
  trial,         ///< a link's first message
  meeting,       ///< what all nodes tell all others
  partial,       ///< partial results, on the way to the last node
  result,        ///< results, on the way back
  call_partial,  ///< partial results of a reduction that ranks wait for
  call_result,   ///< its results
  parcel,        ///< what node 0 sends beside the ranks' calls: see SideTraffic
  receipt        ///< what it is sent beside them
};

inline constexpr int kChannels = 8;

/// A node's end of the links between all nodes. One thread at a time sends and receives on a channel; `cancel` may be
/// called from any other.
///
/// What arrives is what was sent, whole and in order, or there is an error: a LinkError that names the node, or
/// Cancelled after `cancel`. After an error nothing more is to be expected of the link.
class NodeLink {
 public:
  /// Messages of one channel that a node may have on the way to another before `send` waits.
  static constexpr std::size_t kWindow = 8;

  /// Of node `node` of `nodes`.
  NodeLink(int node, int nodes) : node_(node), nodes_(nodes) {}
  virtual ~NodeLink() = default;
  NodeLink(const NodeLink&) = delete;
  NodeLink& operator=(const NodeLink&) = delete;

  int node() const { return node_; }    ///< this one
  int nodes() const { return nodes_; }  ///< how many there are

  /// An empty frame, which has to go before the link. Any thread.
  virtual Frame frame() = 0;

  /// Sends a message. Waits only while kWindow of them have not been taken by `peer`.
  virtual void send(int peer, Channel channel, Frame message) = 0;

  /// Waits for the next message of `peer`.
  virtual Frame receive(int peer, Channel channel) = 0;

  /// Waits until all that was sent has been taken: what is still on the way when the link goes may be lost.
  virtual void finish() = 0;

  /// Ends all that waits, now and from now on, with Cancelled.
  virtual void cancel() noexcept = 0;

 private:
  const int node_, nodes_;
};

/// Sends `message` to all other nodes, and waits for theirs: by node, this one's own among them. Collective over nodes.
std::vector<Frame> exchange(NodeLink& link, Channel channel, std::span<const std::byte> message);

}  // namespace tandem::comm
