#include "comm/nodes/memory_link.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

namespace tandem::comm {

std::vector<Frame> exchange(NodeLink& link, Channel channel, std::span<const std::byte> message) {
  std::vector<Frame> frames(static_cast<std::size_t>(link.nodes()));
  for (int peer = 0; peer < link.nodes(); ++peer) {
    Frame frame = link.frame();
    frame.resize(message.size());
    if (!message.empty()) std::memcpy(frame.bytes().data(), message.data(), message.size());
    if (peer == link.node())
      frames[static_cast<std::size_t>(peer)] = std::move(frame);
    else
      link.send(peer, channel, std::move(frame));
  }
  for (int peer = 0; peer < link.nodes(); ++peer)
    if (peer != link.node()) frames[static_cast<std::size_t>(peer)] = link.receive(peer, channel);
  return frames;
}

struct MemoryNetwork::State {
  explicit State(int nodes) : of_nodes(static_cast<std::size_t>(nodes)) {}

  struct Node {
    bool gone = false, cancelled = false;
  };
  struct Lane {
    int from, to;
    Channel channel;
    auto operator<=>(const Lane&) const = default;
  };

  FramePool pool;
  std::mutex mutex;  // guards all below
  std::condition_variable changed;
  std::vector<Node> of_nodes;
  std::map<Lane, std::deque<Frame>> queues;
};

class MemoryNetwork::Link final : public NodeLink {
 public:
  Link(State& state, int node) : NodeLink(node, static_cast<int>(state.of_nodes.size())), state_(state) {}

  ~Link() override {
    const std::lock_guard lock(state_.mutex);
    of(node()).gone = true;
    state_.changed.notify_all();
  }

  Frame frame() override { return state_.pool.take(); }

  void send(int peer, Channel channel, Frame message) override {
    std::unique_lock lock(state_.mutex);
    auto& queue = this->queue(node(), peer, channel);
    wait(lock, peer, [&] { return queue.size() < kWindow; });
    if (of(peer).gone) throw LinkError(peer, "node " + std::to_string(peer) + " has gone");
    queue.push_back(std::move(message));
    state_.changed.notify_all();
  }

  Frame receive(int peer, Channel channel) override {
    std::unique_lock lock(state_.mutex);
    auto& queue = this->queue(peer, node(), channel);
    wait(lock, peer, [&] { return !queue.empty(); });
    Frame message = std::move(queue.front());
    queue.pop_front();
    state_.changed.notify_all();
    return message;
  }

  void finish() override {
    std::unique_lock lock(state_.mutex);
    for (int peer = 0; peer < nodes(); ++peer)
      for (int channel = 0; channel < kChannels; ++channel) {
        auto& queue = this->queue(node(), peer, static_cast<Channel>(channel));
        wait(lock, peer, [&] { return queue.empty(); });
      }
  }

  void cancel() noexcept override {
    const std::lock_guard lock(state_.mutex);
    of(node()).cancelled = true;
    state_.changed.notify_all();
  }

 private:
  State::Node& of(int node) { return state_.of_nodes[static_cast<std::size_t>(node)]; }

  std::deque<Frame>& queue(int from, int to, Channel channel) { return state_.queues[{from, to, channel}]; }

  // Until `ready` holds. What a node has sent before it went can still be taken.
  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, int peer, const Ready& ready) {
    state_.changed.wait(lock, [&] { return of(node()).cancelled || ready() || of(peer).gone; });
    if (of(node()).cancelled) throw Cancelled("the links to the other nodes were cancelled");
    if (!ready()) throw LinkError(peer, "node " + std::to_string(peer) + " has gone");
  }

  State& state_;
};

MemoryNetwork::MemoryNetwork(int nodes) : state_(std::make_unique<State>(nodes)) {}
MemoryNetwork::~MemoryNetwork() = default;

std::unique_ptr<NodeLink> MemoryNetwork::link(int node) { return std::make_unique<Link>(*state_, node); }

}  // namespace tandem::comm
