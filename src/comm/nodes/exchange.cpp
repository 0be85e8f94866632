#include "comm/nodes/exchange.h"

#include <algorithm>
#include <cstring>

#include "comm/nodes/chain.h"

namespace tandem::comm {
namespace {

// A message on its way in: its length, and what has come of it.
struct Incoming {
  std::uint64_t length = 0;
  std::string bytes;
  bool begun = false;

  bool complete() const { return begun && bytes.size() == length; }

  void take(std::span<const std::byte> part, int node) {
    if (!begun) {
      if (part.size() < sizeof length) fail(node);
      std::memcpy(&length, part.data(), sizeof length);
      part = part.subspan(sizeof length);
      begun = true;
      if (length > NodeExchange::kMostBytes) fail(node);
    }
    if (part.size() > length - bytes.size() || (part.empty() && length > bytes.size())) fail(node);
    bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
  }

  [[noreturn]] static void fail(int node) {
    throw LinkError(node, "node " + std::to_string(node) + " sent a message whose length is not what it says");
  }
};

// A message on its way out, a frame at a time, the first of which begins with its length.
class Outgoing {
 public:
  explicit Outgoing(std::string_view message) : rest_(message) {}

  bool complete() const { return begun_ && rest_.empty(); }

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

}  // namespace

NodeExchange::NodeExchange(NodeLink& link, std::vector<int> ranks_of_nodes)
    : link_(link),
      ranks_of_nodes_(std::move(ranks_of_nodes)),
      chain_(std::make_unique<NodeChain>(link, ranks_of_nodes_,
                                         ChainChannels{Channel::call_partial, Channel::call_result})) {
  place_ = {.node = link.node(),
            .nodes = link.nodes(),
            .first_rank = first_rank_of(link.node()),
            .local_ranks = ranks_of_nodes_[static_cast<std::size_t>(link.node())],
            .world_size = chain_->world_size()};
}

NodeExchange::~NodeExchange() = default;

int NodeExchange::first_rank_of(int node) const { return comm::first_rank_of(ranks_of_nodes_, node); }

int NodeExchange::node_of(int rank) const {
  int node = 0;
  while (rank >= first_rank_of(node + 1)) ++node;
  return node;
}

std::vector<std::string> NodeExchange::exchange(std::span<const std::string_view> to) {
  const auto nodes = static_cast<std::size_t>(place_.nodes);
  const auto self = static_cast<std::size_t>(place_.node);
  std::vector<Outgoing> out(to.begin(), to.end());
  std::vector<Incoming> in(nodes);
  in[self] = {to[self].size(), std::string(to[self]), true};
  const auto sent = [&](std::size_t node) { return node == self || out[node].complete(); };
  // A frame to each and one from each by turns: nobody has more under way than the links take without waiting.
  for (bool all = false; !all;) {
    all = true;
    for (std::size_t node = 0; node < nodes; ++node)
      if (!sent(node)) link_.send(static_cast<int>(node), Channel::meeting, out[node].next(link_));
    for (std::size_t node = 0; node < nodes; ++node) {
      if (!in[node].complete()) {
        const Frame frame = link_.receive(static_cast<int>(node), Channel::meeting);
        in[node].take(frame.bytes(), static_cast<int>(node));
      }
      all = all && sent(node) && in[node].complete();
    }
  }
  std::vector<std::string> messages;
  for (Incoming& one : in) messages.push_back(std::move(one.bytes));
  return messages;
}

std::vector<std::string> NodeExchange::exchange_all(std::string_view message) {
  return exchange(std::vector<std::string_view>(static_cast<std::size_t>(place_.nodes), message));
}

void NodeExchange::broadcast(int root, std::span<const std::span<std::byte>> rows) {
  // Rows one after another, in frames that are as full as they can be.
  std::size_t row = 0, offset = 0, left = 0;
  for (const auto& one : rows) left += one.size();
  while (left > 0) {
    const std::size_t count = std::min(left, Frame::kMostBytes);
    left -= count;
    Frame frame;
    if (root == place_.node) {
      frame = link_.frame();
      frame.resize(count);
    } else {
      frame = link_.receive(root, Channel::meeting);
      if (frame.bytes().size() != count)
        throw LinkError(root, "node " + std::to_string(root) + " sent " + std::to_string(frame.bytes().size()) +
                                  " bytes to a broadcast, in place of " + std::to_string(count));
    }
    for (std::size_t at = 0; at < count;) {
      const std::size_t part = std::min(count - at, rows[row].size() - offset);
      std::byte* const here = rows[row].data() + offset;
      std::byte* const there = frame.bytes().data() + at;
      if (part > 0) root == place_.node ? std::memcpy(there, here, part) : std::memcpy(here, there, part);
      at += part;
      offset += part;
      if (offset == rows[row].size()) {
        row += 1;
        offset = 0;
      }
    }
    if (root != place_.node) continue;
    for (int node = 0; node < place_.nodes; ++node) {
      if (node == root) continue;
      Frame copy = link_.frame();
      copy.resize(count);
      std::memcpy(copy.bytes().data(), frame.bytes().data(), count);
      link_.send(node, Channel::meeting, std::move(copy));
    }
  }
}

}  // namespace tandem::comm
