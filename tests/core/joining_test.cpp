// Nodes that join over a store, and agree. Needs no LibTorch, so that ThreadSanitizer sees it.
#include "comm/nodes/joining.h"

#include <atomic>
#include <chrono>
#include <random>
#include <set>
#include <thread>

#include "comm/nodes/memory_link.h"
#include "comm/nodes/sockets.h"
#include "comm/nodes/watchman.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "support/node_cards.h"

using namespace tandem;
using namespace tandem::comm;
using namespace std::chrono_literals;
using test::card_of;
using test::cards_of;
using test::error_of;
using test::joined_of;

namespace {

using Clock = std::chrono::steady_clock;

Nodes place_of(int node, int nodes, std::chrono::milliseconds limit = 30s) {
  return {.node = node, .nodes = nodes, .head = "a", .join_timeout = limit};
}

struct Outcome {
  std::optional<JoinedNodes> joined;
  std::string error;
};

// Joins `cards`, a thread each.
std::vector<Outcome> join_all(const std::vector<NodeCard>& cards, std::chrono::milliseconds limit = 30s) {
  MemoryStore store;
  std::vector<Outcome> outcomes(cards.size());
  std::vector<std::thread> threads;
  for (int node = 0; node < static_cast<int>(cards.size()); ++node)
    threads.emplace_back([&, node, at = static_cast<std::size_t>(node)] {
      const auto connection = store.connect();
      outcomes[at].error = error_of<Error>([&] {
        outcomes[at].joined = join_nodes(*connection, place_of(node, static_cast<int>(cards.size()), limit), cards[at]);
      });
    });
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

// All nodes have to say this, word by word the same.
std::string common_error(const std::vector<NodeCard>& cards) {
  const auto outcomes = join_all(cards);
  for (const Outcome& outcome : outcomes) CHECK(outcome.error == outcomes[0].error);
  return outcomes[0].error;
}

}  // namespace

TEST_CASE("nodes that join know all others' cards") {
  for (const int nodes : {1, 2, 4}) {
    const auto outcomes = join_all(cards_of(nodes));
    for (const Outcome& outcome : outcomes) {
      CHECK(outcome.error.empty());
      REQUIRE(outcome.joined);
      CHECK(outcome.joined->cards == cards_of(nodes));
      CHECK(outcome.joined->prefix == "tandem//1/");
    }
  }
  const auto two = joined_of(2);
  CHECK(two.names() == std::vector<std::string>{"node 0 (host a)", "node 1 (host b)"});
  CHECK(two.ranks() == std::vector<int>{1, 2});
}

TEST_CASE("whatever differs is an error on all nodes that names both nodes and values") {
  const auto with_value = [](std::size_t node, const NamedValue& value) {
    auto cards = cards_of(3);
    auto& values = cards[node].values;
    const auto found =
        std::find_if(values.begin(), values.end(), [&](const NamedValue& one) { return one.name == value.name; });
    if (found == values.end())
      values.push_back(value);
    else
      *found = value;
    return cards;
  };
  for (const char* name : {"Tandem", "LibTorch", "seed", "new"})
    for (const std::size_t node : {0, 1, 2}) {
      CAPTURE(name, node);
      const std::string error = common_error(with_value(node, {name, "other"}));
      CHECK_THAT(error, ContainsSubstring(name) && ContainsSubstring("other") && ContainsSubstring("node 0 (host a)"));
      if (node != 0)
        CHECK_THAT(error, ContainsSubstring(
                              "other on " +
                              cards_of(3)[node].host.insert(0, "node " + std::to_string(node) + " (host ") + ")"));
    }
  CHECK_THAT(common_error(with_value(1, {"seed", "43"})),
             ContainsSubstring("the nodes are not alike: seed is 42 on node 0 (host a) and 43 on node 1 (host b)"));
}

TEST_CASE("two processes of one host that would share a GPU are refused, those with their own are not") {
  auto cards = cards_of(3);
  for (NodeCard& card : cards) card.host_id = "one", card.gpus = {"GPU-" + card.host, "GPU-x" + card.host};
  CHECK(settle(cards).empty());
  cards[2].gpus[1] = "GPU-b";
  CHECK_THAT(common_error(cards), ContainsSubstring("node 1 (host b) and node 2 (host c) would share GPU GPU-b"));
  cards[2].host_id = "another";
  CHECK(settle(cards).empty());
}

TEST_CASE("a loopback address gives way to the one at which others reach the store's host, or is an error") {
  auto cards = cards_of(3);
  cards[0].address = cards[0].head_address = "127.0.1.1";  // as some systems have their own name
  CHECK(settle(cards).empty());
  CHECK(cards[0].address == "10.0.0.1");
  cards = cards_of(3);
  for (NodeCard& card : cards) card.address = card.head_address = "127.0.0.1";
  CHECK_THAT(common_error(cards), ContainsSubstring("node 0 (host a) has only the address 127.0.0.1"));
  for (NodeCard& card : cards) card.host_id = "one";
  CHECK(settle(cards).empty());
  CHECK(cards[1].address == "127.0.0.1");
  for (const char* address : {"127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"}) CHECK(is_loopback(address));
  for (const char* address : {"10.0.0.1", "::", "fe80::1", "::ffff:10.0.0.1", "128.0.0.1"})
    CHECK(!is_loopback(address));
}

TEST_CASE("who waits hears who is missing, and gives up in time") {
  MemoryStore store;
  const auto connection = store.connect();
  Nodes nodes = place_of(0, 3, 2500ms);
  nodes.hosts = {"a", "b", "c"};
  std::vector<std::string> heard;
  JoinOptions options{.progress = [&](const std::string& text) { heard.push_back(text); }};
  CHECK_THAT(error_of<CollectiveError>([&] { join_nodes(*connection, nodes, card_of(0), options); }),
             ContainsSubstring("gave up after 2 s: waiting for nodes 1 (host b), 2 (host c) of 3"));
  REQUIRE(!heard.empty());
  CHECK_THAT(heard[0],
             ContainsSubstring("waiting for nodes 1 (host b), 2 (host c) of 3: ") && ContainsSubstring(" s of 2 s"));

  // Whoever comes then is told why, and does not wait.
  Nodes second = place_of(1, 3);
  CHECK_THAT(error_of<CollectiveError>([&] { join_nodes(*store.connect(), second, card_of(1)); }),
             ContainsSubstring("node 0 (host a): gave up after"));

  MemoryStore empty;
  second.join_timeout = 100ms;
  CHECK_THAT(error_of<CollectiveError>([&] { join_nodes(*empty.connect(), second, card_of(1)); }),
             ContainsSubstring("gave up after 100 ms: waiting for node 0 of 3"));
}

TEST_CASE("a stop while joining ends it, for the others too") {
  MemoryStore store;
  std::stop_source stop;
  std::string other;
  std::thread first(
      [&] { other = error_of<Error>([&] { join_nodes(*store.connect(), place_of(0, 3), card_of(0)); }); });
  std::thread stopper([&] {
    std::this_thread::sleep_for(60ms);
    stop.request_stop();
  });
  CHECK_THROWS_AS(join_nodes(*store.connect(), place_of(1, 3), card_of(1), {.stop = stop.get_token()}), Cancelled);
  first.join();
  stopper.join();
  CHECK_THAT(other, ContainsSubstring("node 1 (host b): joining the other nodes was cancelled"));
}

TEST_CASE("a node that came and is no more is missed when all have come, and named") {
  MemoryStore store;
  store.connect()->set("tandem//1/card2", to_bytes(card_of(2)));  // and nothing else
  std::vector<std::string> errors(2);
  std::vector<std::thread> threads;
  for (int node = 0; node < 2; ++node)
    threads.emplace_back([&, node] {
      Nodes nodes = place_of(node, 3);
      nodes.node_timeout = 100ms;
      errors[static_cast<std::size_t>(node)] =
          error_of<CollectiveError>([&] { join_nodes(*store.connect(), nodes, card_of(node)); });
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors)
    CHECK_THAT(error, ContainsSubstring("node 2 (host c) came, and has not been heard of for 100 ms since"));
}

TEST_CASE("what a program throws while it waits for others ends them too") {
  MemoryStore store;
  std::string other;
  std::thread second(
      [&] { other = error_of<Error>([&] { join_nodes(*store.connect(), place_of(1, 3), card_of(1)); }); });
  const JoinOptions options{.progress = [](const std::string&) { throw std::runtime_error("disk on fire"); }};
  CHECK_THROWS_AS(join_nodes(*store.connect(), place_of(0, 3), card_of(0), options), std::runtime_error);
  second.join();
  CHECK(other == "node 0 (host a): disk on fire");
}

TEST_CASE("a start that finds the one before, which ends, waits for its own") {
  MemoryStore store;
  {
    const auto before = store.connect();
    before->add("tandem//generation", 1);
    before->set("tandem//1/place1", "itself");
    before->set(left_key("tandem//1/", 1), "1");
  }
  std::vector<std::string> prefixes(2);
  std::thread second([&] { prefixes[1] = join_nodes(*store.connect(), place_of(1, 2), card_of(1)).prefix; });
  std::this_thread::sleep_for(50ms);
  prefixes[0] = join_nodes(*store.connect(), place_of(0, 2), card_of(0)).prefix;
  second.join();
  CHECK(prefixes == std::vector<std::string>(2, "tandem//2/"));

  MemoryStore gone;
  const auto connection = gone.connect();
  gone.end();
  CHECK_THROWS_AS(join_nodes(*connection, place_of(1, 2), card_of(1)), EarlierStoreError);
}

TEST_CASE("two processes of one number are an error that names both") {
  MemoryStore store;
  std::vector<std::string> errors(2);
  std::vector<std::thread> threads;
  for (int node = 0; node < 2; ++node)
    threads.emplace_back([&, node] {
      errors[static_cast<std::size_t>(node)] =
          error_of<CollectiveError>([&] { join_nodes(*store.connect(), place_of(node, 3, 500ms), card_of(node)); });
    });
  while (!store.connect()->get("tandem//1/card1")) std::this_thread::sleep_for(1ms);
  NodeCard third = card_of(1);
  third.host = "z";
  CHECK_THAT(error_of<CollectiveError>([&] { join_nodes(*store.connect(), place_of(1, 3), third); }),
             ContainsSubstring("process 101 of host z") && ContainsSubstring("process 101 of host b"));
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) CHECK_THAT(error, ContainsSubstring("waiting for node 2 of 3"));
}

TEST_CASE("starts over one store that outlives them go into generations that all nodes agree on") {
  MemoryStore store;
  const auto place = [](int node) {
    Nodes nodes = place_of(node, 3);
    nodes.launcher_has_store = true;
    return nodes;
  };
  std::mt19937 random(7);
  for (int start = 1; start <= 15; ++start) {
    std::vector<std::string> prefixes(3);
    std::vector<std::thread> threads;
    for (int node = 0; node < 3; ++node)
      threads.emplace_back([&, node, delay = random() % 40] {
        std::this_thread::sleep_for(std::chrono::milliseconds(delay));  // restarted at their own times
        prefixes[static_cast<std::size_t>(node)] = join_nodes(*store.connect(), place(node), card_of(node)).prefix;
      });
    for (std::thread& thread : threads) thread.join();
    const std::string wanted = "tandem//" + std::to_string(start) + "/";
    REQUIRE(prefixes == std::vector<std::string>(3, wanted));
  }
}

TEST_CASE("cards and failures come back as they were, and bytes that are neither are refused") {
  NodeCard card = card_of(2);
  card.gpus = {"GPU-1", ""};
  card.values.push_back({"a:b", std::string("3:x\0y", 5)});
  CHECK(node_card_of(to_bytes(card), 2) == card);
  const NodeFailure failure{3, "host", -1, "1:2:3"};
  CHECK(node_failure_of(to_bytes(failure)) == failure);
  std::mt19937 random(11);
  const std::string good = to_bytes(card);
  int refused = 0;
  for (int trial = 0; trial < 5000; ++trial) {
    std::string bytes = good;
    if (trial % 3 == 0)
      bytes.resize(random() % bytes.size());
    else
      for (unsigned changes = 1 + random() % 3; changes > 0; --changes)
        bytes[random() % bytes.size()] = static_cast<char>(random());
    try {
      node_card_of(bytes, 2);  // some are another card
    } catch (const LinkError& error) {
      ++refused;
      CHECK(error.node() == 2);
    }
  }
  CHECK(refused > 2000);
  for (const char* bytes : {"", ":", "x", "1", "1:", "99999999999:", "1:a1:b1:c1:d1:-", "0:0:0:0:1:11:110:999999999999",
                            "0:0:0:0:1:11:17:10485761:a"})
    CHECK_THAT(error_of<LinkError>([&] { node_card_of(bytes, 1); }), ContainsSubstring("node 1 has sent"));
}

TEST_CASE("each link is tried, and one to another start is an error that names the node") {
  for (const bool other : {false, true}) {
    MemoryNetwork network(3);
    std::vector<std::string> errors(3);
    std::vector<std::unique_ptr<NodeLink>> links;
    for (int node = 0; node < 3; ++node) links.push_back(network.link(node));
    std::vector<std::thread> threads;
    for (int node = 0; node < 3; ++node)
      threads.emplace_back([&, at = static_cast<std::size_t>(node), node] {
        JoinedNodes joined = joined_of(3);
        if (other && node == 1) joined.prefix = "t/2/";
        errors[at] = error_of<LinkError>([&] { try_links(*links[at], joined); });
      });
    for (std::thread& thread : threads) thread.join();
    const std::string wanted = " is of another training, or of another start of this one";
    if (other)
      CHECK(errors == std::vector<std::string>{"node 1 (host b)" + wanted, "node 0 (host a)" + wanted,
                                               "node 1 (host b)" + wanted});
    else
      CHECK(errors == std::vector<std::string>(3));
  }
}

TEST_CASE("nodes try to reach each other, and who cannot be reached is named on all") {
  const Descriptor open = listen_at(0);
  const int closed = port_of(listen_at(0));
  for (const bool reached : {true, false}) {
    auto cards = cards_of(3);
    for (NodeCard& card : cards) {
      card.host_id = "one";
      card.address = card.head_address = "127.0.0.1";
      card.port = port_of(open);
    }
    if (!reached) cards[2].port = closed;
    for (const Outcome& outcome : join_all(cards)) {
      CAPTURE(outcome.error);
      CHECK(outcome.joined.has_value() == reached);
      if (!reached)
        CHECK_THAT(outcome.error, Catch::Matchers::ContainsSubstring(
                                      "cannot reach node 2 (host c) at its address 127.0.0.1: Connection refused"));
    }
  }
}
