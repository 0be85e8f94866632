#include "comm/nodes/connection.h"

#include <unistd.h>

#include <algorithm>
#include <future>
#include <thread>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "comm/nodes/gloo_link.h"
#include "comm/nodes/sockets.h"

namespace tandem::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kEnding(2000);  // how long the store of an earlier start may take to go

// What a call of the store may take: a watchman's silence is longer.
milliseconds call_limit(const Nodes& nodes) { return nodes.node_timeout * 2 / 3; }

bool serves_store(const Nodes& nodes) { return nodes.node == 0 && !nodes.launcher_has_store; }

// Whether node 0 serves it to this one.
bool waits_for_store(const Nodes& nodes) { return nodes.node != 0 && !nodes.launcher_has_store; }

// The system's resolver may take minutes, and cannot be ended. Then a thread is left behind.
std::vector<std::string> resolve_within(const std::string& host, milliseconds limit) {
  std::packaged_task<std::vector<std::string>()> task([host] { return resolve(host); });
  auto result = task.get_future();
  std::thread thread(std::move(task));
  if (result.wait_for(limit) == std::future_status::timeout) {
    thread.detach();
    throw ConfigError("the host name '" + host + "' was not resolved within " + to_text(limit));
  }
  thread.join();
  return result.get();
}

}  // namespace

NodeConnection::NodeConnection(const Nodes& nodes, NodeCard mine, const JoinOptions& options,
                               std::function<void(const NodeFailure&)> on_failure, std::function<std::string()> doing)
    : port_(nodes.port), waits_for_end_(waits_for_store(nodes)) {
  check(nodes);
  mine.host = host_name();
  mine.host_id = host_id();
  mine.process = getpid();
  join(nodes, mine, options);
  connect_links(nodes);
  Watchman::Options watch{.node = nodes.node,
                          .joined = joined_,
                          .serves_store = serves_store(nodes),
                          .store_node = nodes.launcher_has_store ? -1 : 0,
                          .silence = nodes.node_timeout,
                          .beat = std::min(milliseconds(250), nodes.node_timeout / 8),
                          .doing = std::move(doing),
                          .on_failure = [this, on_failure = std::move(on_failure)](const NodeFailure& failure) {
                            if (on_failure) on_failure(failure);
                            link_->cancel();
                          }};
  watchman_ = std::make_unique<Watchman>(connect_store(head_address_, port_, call_limit(nodes)), std::move(watch));
  try {
    try_links(*link_, joined_);
  } catch (const Error& error) {  // also Cancelled, when another node has told why
    const NodeFailure failure = watchman_->tell({nodes.node, mine.host, -1, error.what()}, true);
    watchman_->leave();
    throw CollectiveError((failure.node < 0 || failure.node == nodes.node ? "" : joined_.name(failure.node) + ": ") +
                          failure.text);
  }
}

// A program may train several times, one after another: what is found at the port may be the start before, which ends.
void NodeConnection::join(const Nodes& nodes, NodeCard& mine, const JoinOptions& options) {
  const Descriptor open = listen_at(0);  // for the others to try
  mine.port = port_of(open);
  for (const auto began = Clock::now();;) {
    find_store(nodes, options);
    mine.head_address = head_address_;
    mine.address = nodes.network_interface.empty() ? own_address_towards(head_address_, port_)
                                                   : address_of_interface(nodes.network_interface);
    try {
      joined_ = join_nodes(*store_, nodes, mine, options);
      return;
    } catch (const EarlierStoreError&) {
      if (!waits_for_store(nodes) || Clock::now() - began >= nodes.join_timeout) throw;
      store_.reset();
    } catch (const StoreError& error) {
      if (!waits_for_store(nodes)) throw;
      throw StoreError("node 0 at " + nodes.head +
                       ", which has the nodes' store, has gone or is frozen: " + error.what());
    }
  }
}

// Serves it, or waits until it is there.
void NodeConnection::find_store(const Nodes& nodes, const JoinOptions& options) {
  const std::vector<std::string> addresses =
      resolve_within(nodes.head, std::min(nodes.join_timeout, milliseconds(30'000)));
  head_address_ = addresses[0];
  if (serves_store(nodes)) {
    const bool only_ipv4 = std::none_of(addresses.begin(), addresses.end(),
                                        [](const std::string& one) { return one.find(':') != std::string::npos; });
    store_ = serve_store(port_, call_limit(nodes), only_ipv4);
    return;
  }
  const auto began = Clock::now();
  auto reported = began;
  for (;;) {
    std::string problem;
    for (const std::string& address : addresses) {
      problem = try_to_connect(address, port_, 1000);
      if (!problem.empty()) continue;
      head_address_ = address;
      try {
        store_ = connect_store(address, port_, call_limit(nodes));
        return;
      } catch (const StoreError& error) {
        if (Clock::now() - began >= kEnding) throw;
        problem = error.what();
      }
    }
    const auto now = Clock::now();
    const std::string waiting = "waiting for the store of node 0 at port " + std::to_string(port_) + " of " +
                                nodes.head + " (" + addresses[0] +
                                (is_loopback(addresses[0]) ? ", which is this host itself; " : "; ") + problem + ")";
    if (options.stop.stop_requested()) throw Cancelled("joining the other nodes was cancelled");
    if (now - began >= nodes.join_timeout)
      throw CollectiveError("gave up after " + to_text(nodes.join_timeout) + ": " + waiting);
    if (options.progress && now - reported >= milliseconds(1000)) {
      reported = now;
      options.progress(waiting + ": " + to_text(std::chrono::duration_cast<milliseconds>(now - began)) + " of " +
                       to_text(nodes.join_timeout));
    }
    std::this_thread::sleep_for(milliseconds(20));
  }
}

// Whoever cannot be connected tells the others, which wait for him.
void NodeConnection::connect_links(const Nodes& nodes) {
  const NodeCard& mine = joined_.cards[static_cast<std::size_t>(nodes.node)];
  try {
    const auto store = c10::make_intrusive<c10d::PrefixStore>(joined_.prefix + "gloo", store_->libtorch());
    link_ = make_gloo_link(store, nodes.node, nodes.nodes,
                           {.address = mine.address,
                            .connect_limit = std::min(nodes.join_timeout, milliseconds(30'000)),
                            .names = joined_.names()});
  } catch (const Error& error) {
    const NodeFailure failure{nodes.node, mine.host, -1, error.what()};
    try {
      store_->set_first(failure_key(joined_.prefix), to_bytes(failure));
      leave_store(*store_, joined_.prefix, nodes.node, nodes.nodes, serves_store(nodes), milliseconds(1000));
    } catch (const StoreError&) {  // the others find out by themselves
    }
    throw;
  }
}

void NodeConnection::leave() {
  link_->finish();
  watchman_->leave();
  if (waits_for_end_) await_end_of_store();
}

// What this program starts next is not to find the store of what has ended. Not by a call of the store: LibTorch prints
// when one breaks off.
void NodeConnection::await_end_of_store() const {
  for (const auto began = Clock::now(); Clock::now() - began < milliseconds(200);) {
    if (!try_to_connect(head_address_, port_, 200).empty()) return;
    std::this_thread::sleep_for(milliseconds(2));
  }
}

}  // namespace tandem::comm
