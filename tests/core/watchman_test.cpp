// Nodes that watch each other. Needs no LibTorch, so that ThreadSanitizer sees it.
#include "comm/nodes/watchman.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.h"
#include "support/node_cards.h"

using namespace tandem;
using namespace tandem::comm;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;
using test::joined_of;
using test::kHosts;

namespace {

using Clock = std::chrono::steady_clock;

// Watchmen of nodes that share a store, with short times.
struct Watched {
  explicit Watched(int nodes, std::chrono::milliseconds silence = 1500ms) : heard(static_cast<std::size_t>(nodes)) {
    for (int node = 0; node < nodes; ++node) {
      stores.push_back(std::make_unique<MemoryStore>(store));
      watchmen.push_back(std::make_unique<Watchman>(
          stores.back()->connect(), Watchman::Options{.node = node,
                                                      .joined = joined_of(nodes),
                                                      .serves_store = node == 0,
                                                      .silence = silence,
                                                      .beat = 5ms,
                                                      .on_failure = [this, node](const NodeFailure& failure) {
                                                        const std::lock_guard lock(mutex);
                                                        heard[static_cast<std::size_t>(node)].push_back(failure);
                                                        changed.notify_all();
                                                      }}));
    }
  }

  // What `node` has heard, when it has.
  NodeFailure await(int node) {
    std::unique_lock lock(mutex);
    auto& mine = heard[static_cast<std::size_t>(node)];
    REQUIRE(changed.wait_for(lock, 60s, [&] { return !mine.empty(); }));
    return mine[0];
  }

  MemoryStore store;
  std::vector<std::unique_ptr<MemoryStore>> stores;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::vector<NodeFailure>> heard;
  std::vector<std::unique_ptr<Watchman>> watchmen;
};

}  // namespace

TEST_CASE("a failure that is told is heard by all, and the first counts") {
  Watched nodes(3, 60s);
  const NodeFailure mine{2, "c", 5, "out of memory"};
  CHECK(nodes.watchmen[2]->tell(mine) == mine);
  CHECK(nodes.await(0) == mine);
  CHECK(nodes.await(1) == mine);
  CHECK(nodes.watchmen[1]->tell({1, "b", 1, "the link to node 2 failed"}) == mine);
}

TEST_CASE("what may follow from another failure waits for its cause, and counts where none comes") {
  Watched nodes(2, 60s);
  const NodeFailure cause{0, "a", 0, "disk full"}, consequence{1, "b", -1, "the link to node 0 failed"};
  NodeFailure told;
  std::thread teller([&] {
    std::this_thread::sleep_for(50ms);
    told = nodes.watchmen[0]->tell(cause);
  });
  CHECK(nodes.watchmen[1]->tell(consequence, true) == cause);
  teller.join();
  CHECK(told == cause);
  Watched others(2, 60s);
  CHECK(others.watchmen[1]->tell(consequence, true) == consequence);
  CHECK(others.await(0) == consequence);
}

TEST_CASE("a node that goes without a word is missed, and named, by all others") {
  for (const int gone : {0, 2}) {
    Watched nodes(3);
    std::this_thread::sleep_for(30ms);
    nodes.watchmen[static_cast<std::size_t>(gone)].reset();
    const NodeFailure heard = nodes.await(1);
    CHECK(heard.node == gone);
    CHECK_THAT(heard.text, ContainsSubstring(std::string("(host ") + kHosts[gone] + ") has not been heard of"));
    CHECK(nodes.await(gone == 0 ? 2 : 0) == heard);
  }
}

TEST_CASE("nodes hear what the ranks of the others do") {
  MemoryStore store;
  std::vector<std::unique_ptr<Watchman>> watchmen;
  for (int node = 0; node < 3; ++node)
    watchmen.push_back(std::make_unique<Watchman>(
        store.connect(),
        Watchman::Options{.node = node, .joined = joined_of(3), .silence = 60s, .beat = 5ms, .doing = [node] {
                            return "what " + std::to_string(node) + " does";
                          }}));
  std::vector<std::string> said;
  const std::vector<std::string> wanted{"what 0 does", "", "what 2 does"};
  for (const auto began = Clock::now(); said != wanted && Clock::now() - began < 60s;) said = watchmen[1]->ask_others();
  CHECK(said == wanted);
}

TEST_CASE("a store that has gone, or does not answer, ends the nodes, naming where it is") {
  for (const bool frozen : {false, true}) {
    Watched nodes(2, 60s);
    std::this_thread::sleep_for(20ms);
    if (frozen)
      nodes.store.freeze(50ms);
    else
      nodes.store.end();
    CHECK_THAT(nodes.await(1).text,
               ContainsSubstring("node 0 (host a), which has the nodes' store, cannot be reached"));
    CHECK(nodes.watchmen[1]->tell({1, "b", 1, "mine"}).node == 0);
  }
}

TEST_CASE("a store that never answers keeps neither the one who tells nor the end of a watchman") {
  Watched nodes(2, 200ms);
  std::this_thread::sleep_for(20ms);
  nodes.store.freeze();
  const NodeFailure mine{1, "b", 1, "mine"};
  CHECK(nodes.watchmen[1]->tell(mine) == mine);
}

TEST_CASE("nodes that have ended well are not missed, and wait for each other") {
  Watched nodes(3, 60s);
  std::atomic<bool> last{false};
  std::atomic<int> waited{0};
  std::vector<std::thread> threads;
  for (const std::size_t node : {0, 1})
    threads.emplace_back([&, node] {
      nodes.watchmen[node]->leave();
      waited += last;
    });
  std::this_thread::sleep_for(100ms);
  last = true;
  nodes.watchmen[2]->leave();
  for (std::thread& thread : threads) thread.join();
  CHECK(waited == 2);
  for (const auto& heard : nodes.heard) CHECK(heard.empty());
}

TEST_CASE("a node that left is not missed by those that go on") {
  Watched nodes(3);
  nodes.watchmen[1]->leave();  // waits in vain
  nodes.watchmen[1].reset();
  std::this_thread::sleep_for(2s);
  const std::lock_guard lock(nodes.mutex);
  for (const auto& heard : nodes.heard) CHECK(heard.empty());
}
