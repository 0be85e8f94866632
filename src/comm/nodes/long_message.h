// Messages of any length between two nodes, a frame at a time. Needs no LibTorch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "comm/nodes/link.h"

namespace tandem::comm {

/// A message on its way in: its length, and what has come of it.
class IncomingMessage {
 public:
  /// Longest message: what is longer is a broken one.
  static constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 40;

  /// Nothing has come.
  IncomingMessage() = default;

  /// One that has come already.
  explicit IncomingMessage(std::string_view whole) : length_(whole.size()), bytes_(whole), begun_(true) {}

  bool complete() const { return begun_ && bytes_.size() == length_; }  ///< all of it has come
  std::string take_bytes() { return std::move(bytes_); }                ///< what has come

  /// Adds the next frame. Throws LinkError that names `node`, its sender, when it is not one of the message.
  void take(std::span<const std::byte> part, int node) {
    if (!begun_) {
      if (part.size() < sizeof length_) fail(node);
      std::memcpy(&length_, part.data(), sizeof length_);
      part = part.subspan(sizeof length_);
      begun_ = true;
      if (length_ > kMostBytes) fail(node);
    }
    if (part.size() > length_ - bytes_.size() || (part.empty() && length_ > bytes_.size())) fail(node);
    bytes_.append(reinterpret_cast<const char*>(part.data()), part.size());
  }

 private:
  [[noreturn]] static void fail(int node) {
    throw LinkError(node, "node " + std::to_string(node) + " sent a message whose length is not what it says");
  }

  std::uint64_t length_ = 0;
  std::string bytes_;
  bool begun_ = false;
};

/// A message on its way out, the first frame of which begins with its length.
class OutgoingMessage {
 public:
  /// Of bytes that outlive it.
  explicit OutgoingMessage(std::string_view message) : rest_(message) {}

  bool complete() const { return begun_ && rest_.empty(); }  ///< there are no more frames

  /// The next one.
  Frame next(NodeLink& link) {
    Frame frame = link.frame();
    const std::uint64_t length = rest_.size();
    const std::size_t head = begun_ ? 0 : sizeof length;
    const std::size_t count = std::min(rest_.size(), Frame::kMostBytes - head);
    frame.resize(head + count);
    if (head > 0) std::memcpy(frame.bytes().data(), &length, head);
    if (count > 0) std::memcpy(frame.bytes().data() + head, rest_.data(), count);
    rest_.remove_prefix(count);
    begun_ = true;
    return frame;
  }

 private:
  std::string_view rest_;
  bool begun_ = false;
};

/// Sends all of a message: waits as NodeLink::send does for each frame.
inline void send_message(NodeLink& link, int peer, Channel channel, std::string_view message) {
  for (OutgoingMessage out(message); !out.complete();) link.send(peer, channel, out.next(link));
}

/// Waits for all of the next message of `peer`. Throws what NodeLink::receive throws.
inline std::string receive_message(NodeLink& link, int peer, Channel channel) {
  IncomingMessage in;
  while (!in.complete()) in.take(link.receive(peer, channel).bytes(), peer);
  return in.take_bytes();
}

}  // namespace tandem::comm
