#include "comm/nodes/exchange.h"

#include <algorithm>
#include <cstring>

#include "comm/nodes/chain.h"
#include "comm/nodes/long_message.h"

namespace tandem::comm {
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
  std::vector<OutgoingMessage> out(to.begin(), to.end());
  std::vector<IncomingMessage> in(nodes);
  in[self] = IncomingMessage(to[self]);
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
  for (IncomingMessage& one : in) messages.push_back(one.take_bytes());
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
