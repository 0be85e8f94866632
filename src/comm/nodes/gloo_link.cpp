#define USE_C10D_GLOO  // LibTorch has it, and its header wants to be told

#include "comm/nodes/gloo_link.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <future>
#include <mutex>
#include <set>
#include <thread>

#include <ATen/ops/from_blob.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "comm/error_text.h"
#include "comm/nodes/broken_pipe.h"

namespace tandem::comm {
namespace {

// What comes before a message. In the order of this machine's bytes: another order is another magic number.
struct Header {
  std::uint64_t magic;
  std::uint64_t sequence;  // of the messages of a channel from one node to another
  std::uint32_t sender, channel;
  std::uint64_t bytes;  // of the message
};
static_assert(sizeof(Header) <= Frame::kEnvelope);

constexpr std::uint64_t kMagic = 0x54616e64656d2e31;  // "Tandem.1"

// What comes after it: tells a message that was cut off from a whole one. No two messages of a link have the same, as
// the memory that a message comes into may have had another one.
std::uint64_t trailer_of(const Header& header) {
  const std::uint64_t lane = std::uint64_t{header.sender} << 32 | std::uint64_t{header.channel} << 56;
  return ~(header.sequence ^ header.bytes ^ lane) ^ kMagic;
}

// Without the place in Gloo's source where it was thrown.
std::string without_place(const std::string& text) {
  if (!text.starts_with("[/")) return text;
  const auto end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

// Nodes end by being told to. Gloo's own limit closes the links to all nodes; left out, that for connecting counts, and
// ProcessGroupGloo::setTimeout does not change it.
constexpr std::chrono::milliseconds kNoLimit = std::chrono::hours(24 * 365);

c10::intrusive_ptr<c10d::ProcessGroupGloo::Options> gloo_options(const GlooLinkOptions& options) {
  using Gloo = c10d::ProcessGroupGloo;
  auto gloo = Gloo::Options::create(options.connect_limit);
  gloo->threads = 1;  // of collectives, which we make none of
  const auto device = Gloo::createDeviceForHostname(options.address);
  // A connection for each channel: LibTorch takes that of the tag modulo their number. On one connection Gloo's thread
  // cannot receive while another thread sends.
  gloo->devices.assign(kChannels, device);
  return gloo;
}

// Gloo's threads wait for a lock by spinning, and who holds it is often the one whom they have just taken the core
// from: with SCHED_BATCH they take it from nobody. Threads inherit that, as they do blocked signals.
c10::intrusive_ptr<c10d::ProcessGroupGloo> connect(const c10::intrusive_ptr<c10d::Store>& store, int node, int nodes,
                                                   const GlooLinkOptions& options) {
  std::packaged_task<c10::intrusive_ptr<c10d::ProcessGroupGloo>()> task([&] {
    const BrokenPipesAreErrors for_its_threads;
    const sched_param none{};
    sched_setscheduler(0, SCHED_BATCH, &none);  // where that is refused, it is only slower
    return c10::make_intrusive<c10d::ProcessGroupGloo>(store, node, nodes, gloo_options(options));
  });
  auto connected = task.get_future();
  std::jthread(std::move(task)).join();
  return connected.get();
}

class GlooLink final : public NodeLink {
 public:
  GlooLink(const c10::intrusive_ptr<c10d::Store>& store, int node, int nodes, const GlooLinkOptions& options)
      : NodeLink(node, nodes),
        names_(options.names),
        lanes_(static_cast<std::size_t>(nodes) * kChannels),
        gloo_(connect(store, node, nodes, options)) {}

  ~GlooLink() override {
    const BrokenPipesAreErrors here;
    lanes_.clear();  // Gloo forgets them before their memory goes
  }

  Frame frame() override { return pool_.take(); }

  void send(int peer, Channel channel, Frame message) override {
    Lane& lane = this->lane(peer, channel);
    while (lane.sending.size() >= kWindow) {
      wait(*lane.sending.front().work, peer);
      lane.sending.pop_front();
    }
    const Header header{kMagic, lane.sent++, static_cast<std::uint32_t>(node()), static_cast<std::uint32_t>(channel),
                        message.bytes().size()};
    const std::uint64_t trailer = trailer_of(header);
    std::memcpy(message.with_envelope(), &header, sizeof header);
    std::memcpy(message.bytes().data() + header.bytes, &trailer, sizeof trailer);
    std::vector<at::Tensor> bytes{
        memory_of(message, static_cast<std::int64_t>(Frame::kEnvelope + header.bytes + sizeof trailer))};
    lane.sending.push_back(
        {std::move(message), post(peer, [&] { return gloo_->send(bytes, peer, static_cast<int>(channel)); })});
  }

  Frame receive(int peer, Channel channel) override {
    Lane& lane = this->lane(peer, channel);
    // Gloo sends at once what is waited for. What comes in a row is waited for in a row.
    const std::size_t ahead = channel == Channel::trial || channel == Channel::meeting ? 2 : kWindow;
    post_receives(peer, channel, ahead);
    wait(*lane.receiving.front().work, peer);
    Frame message = std::move(lane.receiving.front().frame);
    lane.receiving.pop_front();
    check(message, peer, channel, lane.received++);
    post_receives(peer, channel, ahead);
    return message;
  }

  void finish() override {
    for (int peer = 0; peer < nodes(); ++peer)
      for (int channel = 0; channel < kChannels; ++channel)
        for (auto& sending = lane(peer, static_cast<Channel>(channel)).sending; !sending.empty(); sending.pop_front())
          wait(*sending.front().work, peer);
  }

  void cancel() noexcept override {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    const BrokenPipesAreErrors here;
    for (c10d::Work* work : waiting_) try {
        work->abort();
      } catch (...) {  // it has just ended
      }
  }

 private:
  // Its work goes before its memory does.
  struct Transfer {
    Frame frame;
    c10::intrusive_ptr<c10d::Work> work;
  };
  struct Lane {
    std::deque<Transfer> sending, receiving;
    std::uint64_t sent = 0, received = 0;  // messages
  };

  Lane& lane(int peer, Channel channel) {
    return lanes_[static_cast<std::size_t>(peer) * kChannels + static_cast<std::size_t>(channel)];
  }

  std::string name_of(int peer) const {
    return names_.empty() ? "node " + std::to_string(peer) : names_[static_cast<std::size_t>(peer)];
  }

  static at::Tensor memory_of(Frame& frame, std::int64_t bytes) {
    return at::from_blob(frame.with_envelope(), {bytes}, at::kByte);
  }

  void post_receives(int peer, Channel channel, std::size_t count) {
    Lane& lane = this->lane(peer, channel);
    while (lane.receiving.size() < count) {
      Frame frame = pool_.take();
      std::memset(frame.with_envelope(), 0, Frame::kEnvelope);  // of an earlier message
      std::vector<at::Tensor> bytes{memory_of(frame, Frame::kEnvelope + Frame::kMostBytes + sizeof(std::uint64_t))};
      lane.receiving.push_back(
          {std::move(frame), post(peer, [&] { return gloo_->recv(bytes, peer, static_cast<int>(channel)); })});
    }
  }

  template <class Post>
  c10::intrusive_ptr<c10d::Work> post(int peer, const Post& call) {
    throw_if_cancelled();
    const BrokenPipesAreErrors here;
    try {
      return call();
    } catch (const std::exception&) {
      throw_if_cancelled();
      fail(peer, without_place(text_of(std::current_exception())));
    }
  }

  void wait(c10d::Work& work, int peer) {
    {
      const std::lock_guard lock(mutex_);
      if (cancelled_) throw_cancelled();
      waiting_.insert(&work);
    }
    const BrokenPipesAreErrors here;
    bool done = false;
    std::exception_ptr error;
    try {
      done = work.wait(kNoLimit);
    } catch (...) {
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      waiting_.erase(&work);
      if (cancelled_) throw_cancelled();
    }
    if (error) fail(peer, without_place(text_of(error)));
    if (!done) fail(peer, "the transfer was given up");
  }

  void check(Frame& message, int peer, Channel channel, std::uint64_t sequence) const {
    Header header;
    std::memcpy(&header, message.with_envelope(), sizeof header);
    if (header.magic != kMagic || header.bytes > Frame::kMostBytes)
      fail(peer, "it has sent something that is no message of Tandem's of this version");
    if (header.sender != static_cast<std::uint32_t>(peer) || header.channel != static_cast<std::uint32_t>(channel) ||
        header.sequence != sequence)
      fail(peer, "it has sent message " + std::to_string(header.sequence) + " of node " +
                     std::to_string(header.sender) + ", channel " + std::to_string(header.channel) +
                     ", in place of message " + std::to_string(sequence) + ", channel " +
                     std::to_string(static_cast<int>(channel)));
    message.resize(static_cast<std::size_t>(header.bytes));
    std::uint64_t trailer = 0;
    std::memcpy(&trailer, message.bytes().data() + header.bytes, sizeof trailer);
    if (trailer != trailer_of(header)) fail(peer, "its message was cut off");
  }

  [[noreturn]] void fail(int peer, const std::string& what) const {
    throw LinkError(peer, "the link to " + name_of(peer) + " failed: " + what);
  }

  void throw_if_cancelled() {
    const std::lock_guard lock(mutex_);
    if (cancelled_) throw_cancelled();
  }

  [[noreturn]] static void throw_cancelled() { throw Cancelled("the links to the other nodes were cancelled"); }

  const std::vector<std::string> names_;
  FramePool pool_;
  std::vector<Lane> lanes_;
  const c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_;
  std::mutex mutex_;  // guards both below
  bool cancelled_ = false;
  std::set<c10d::Work*> waiting_;  // what the threads that send and receive wait for
};

}  // namespace

std::unique_ptr<NodeLink> make_gloo_link(c10::intrusive_ptr<c10d::Store> store, int node, int nodes,
                                         const GlooLinkOptions& options) {
  try {
    return std::make_unique<GlooLink>(store, node, nodes, options);
  } catch (const Error&) {
    throw;
  } catch (const std::exception&) {
    throw LinkError(node, "node " + std::to_string(node) + " could not be connected with the others, at its address " +
                              options.address + ": " + without_place(text_of(std::current_exception())));
  }
}

}  // namespace tandem::comm
