// Links between nodes and the sums that go through them. Needs no LibTorch, so that ThreadSanitizer sees it.
#include "comm/nodes/chain.h"

#include <atomic>
#include <chrono>
#include <numeric>

#include "comm/nodes/memory_link.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "support/node_sums.h"

using namespace tandem;
using namespace tandem::comm;
using namespace tandem::test;

namespace {

struct MemoryNodes {
  explicit MemoryNodes(std::size_t nodes) : network(static_cast<int>(nodes)) {
    for (std::size_t node = 0; node < nodes; ++node) links.push_back(network.link(static_cast<int>(node)));
  }
  NodeLink& operator[](int node) { return *links[static_cast<std::size_t>(node)]; }

  MemoryNetwork network;
  std::vector<std::unique_ptr<NodeLink>> links;
};

int wrong_over_memory(const std::vector<int>& ranks_of_nodes, const std::vector<RowKind>& rows, ReduceOp op,
                      bool with_squares = false) {
  const int world = std::accumulate(ranks_of_nodes.begin(), ranks_of_nodes.end(), 0);
  auto wanted = rows_of(rows, op, world, with_squares), got = rows_of(rows, op, world, with_squares);
  reduce_in_one_process(wanted);
  MemoryNodes nodes(ranks_of_nodes.size());
  reduce_over_nodes(got, ranks_of_nodes, [&](int node) -> NodeLink& { return nodes[node]; });
  return wrong_ranks(got, wanted);
}

const std::vector<std::vector<int>> kNodes{{1, 1}, {2, 1}, {1, 2, 1}, {2, 2}, {3, 1, 2, 2}, {2}};

Frame frame_of(NodeLink& link, const std::string& text) {
  Frame frame = link.frame();
  frame.resize(text.size());
  std::memcpy(frame.bytes().data(), text.data(), text.size());
  return frame;
}

std::string text_of(const Frame& frame) {
  return {reinterpret_cast<const char*>(frame.bytes().data()), frame.bytes().size()};
}

}  // namespace

TEST_CASE("nodes get the bits of one process for all types and reductions, whatever the ranks of each") {
  for (const std::vector<int>& nodes : kNodes)
    for (const ElementType type : kAllTypes)
      for (const ReduceOp op : ops_of(type)) {
        CAPTURE(nodes, static_cast<int>(type), to_string(op));
        CHECK(wrong_over_memory(nodes, {{type, 7}}, op) == 0);
        CHECK(wrong_over_memory(nodes, {{type, 1500}, {type, 0}, {type, 1025}}, op) == 0);
      }
}

TEST_CASE("nodes get the bits of one process with many frames under way") {
  for (const ElementType type : kAllTypes) {
    CAPTURE(static_cast<int>(type));
    const auto elements = static_cast<std::int64_t>(280'000 / size_of(type));
    CHECK(wrong_over_memory({1, 2, 1}, {{type, 1}, {type, elements}, {type, 5}}, ReduceOp::sum) == 0);
  }
  // More than may be under way.
  CHECK(wrong_over_memory({1, 2, 1}, {{ElementType::float32, 1'200'000}}, ReduceOp::mean) == 0);
}

TEST_CASE("rows of any types and lengths go through frames together") {
  std::mt19937 random(3);
  for (int trial = 0; trial < 10; ++trial) {
    std::vector<RowKind> rows;
    for (unsigned count = 1 + random() % 12; count > 0; --count)
      rows.push_back({kAllTypes[random() % std::size(kAllTypes)],
                      static_cast<std::int64_t>(random() % (random() % 3 == 0 ? 60'000 : 500))});
    const auto& nodes = kNodes[random() % kNodes.size()];
    CAPTURE(trial, nodes);
    CHECK(wrong_over_memory(nodes, rows, ReduceOp::sum) == 0);
  }
}

TEST_CASE("sums of squares over nodes are those of one process") {
  for (const std::vector<int>& nodes : kNodes)
    for (const ElementType type :
         {ElementType::float32, ElementType::float64, ElementType::float16, ElementType::bfloat16}) {
      CAPTURE(nodes, static_cast<int>(type));
      CHECK(wrong_over_memory(nodes, {{type, 3}, {type, 1024}, {type, 40'000}, {type, 1025}}, ReduceOp::mean, true) ==
            0);
      CHECK(wrong_over_memory(nodes, {{type, 5}}, ReduceOp::mean, true) == 0);
    }
}

TEST_CASE("nodes get the bits that the threads of one process get") {
  const std::vector<RowKind> rows{{ElementType::float32, 100'003}, {ElementType::bfloat16, 70'001}};
  const std::vector<int> ranks_of_nodes{2, 3};
  auto wanted = rows_of(rows, ReduceOp::mean, 5, false), got = rows_of(rows, ReduceOp::mean, 5, false);
  CancelToken token;
  RankGroup group(5, token);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 5; ++rank)
    threads.emplace_back([&, rank] {
      const auto& lists = wanted[static_cast<std::size_t>(rank)].lists;
      SharedReducer(group, rank).reduce({.operation = "all_reduce"}, lists.inputs, lists.outputs, ReduceOp::mean);
    });
  for (std::thread& thread : threads) thread.join();
  MemoryNodes nodes(2);
  reduce_over_nodes(got, ranks_of_nodes, [&](int node) -> NodeLink& { return nodes[node]; });
  CHECK(wrong_ranks(got, wanted) == 0);
}

TEST_CASE("one chain reduces again and again, with outputs that ranks share and that are the inputs") {
  MemoryNodes nodes(3);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int node = 0; node < 3; ++node)
    threads.emplace_back([&, node] {
      NodeChain chain(nodes[node], {2, 2, 2});
      std::vector<float> first(70'000), second(70'000);
      for (int call = 0; call < 20; ++call) {
        const std::int64_t length = call % 4 == 0 ? 3 : 70'000 - call;
        for (std::size_t i = 0; i < first.size(); ++i) first[i] = second[i] = static_cast<float>(call + node);
        const ElementRow one{first.data(), length, ElementType::float32},
            two{second.data(), length, ElementType::float32};
        const SharedReducer::Lists a{{&one, 1}, {&one, 1}, ReduceOp::sum}, b{{&two, 1}, {&one, 1}, ReduceOp::sum};
        const SharedReducer::Lists* const ranks[] = {&a, &b};
        chain.reduce(ranks);
        for (std::int64_t i = 0; i < length; ++i)
          wrong += first[static_cast<std::size_t>(i)] != static_cast<float>(2 * (3 * call + 3));
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("messages arrive whole and in order on each channel, and all nodes hear all") {
  MemoryNodes nodes(3);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int node = 0; node < 3; ++node)
    threads.emplace_back([&, node] {
      NodeLink& link = nodes[node];
      for (int i = 0; i < 200; ++i) {
        const std::string mine = std::to_string(node) + "/" + std::to_string(i);
        const auto frames = exchange(link, Channel::meeting, std::as_bytes(std::span(mine)));
        for (int peer = 0; peer < 3; ++peer)
          wrong += text_of(frames[static_cast<std::size_t>(peer)]) != std::to_string(peer) + "/" + std::to_string(i);
      }
      link.finish();
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  nodes[0].send(1, Channel::result, frame_of(nodes[0], "b"));
  nodes[0].send(1, Channel::partial, frame_of(nodes[0], ""));
  CHECK(text_of(nodes[1].receive(0, Channel::partial)) == "");
  CHECK(text_of(nodes[1].receive(0, Channel::result)) == "b");
  Frame frame = nodes[0].frame();
  CHECK_THAT(error_of<Error>([&] { frame.resize(Frame::kMostBytes + 1); }), ContainsSubstring("too long"));
}

TEST_CASE("whoever waits for a node that has gone gets an error that names it, after what it has sent") {
  MemoryNodes nodes(2);
  nodes[1].send(0, Channel::meeting, frame_of(nodes[1], "last words"));
  std::thread goes([&] { nodes.links[1].reset(); });
  CHECK(text_of(nodes[0].receive(1, Channel::meeting)) == "last words");
  CHECK_THAT(error_of<LinkError>([&] { nodes[0].receive(1, Channel::meeting); }), ContainsSubstring("node 1 has gone"));
  CHECK_THAT(error_of<LinkError>([&] { nodes[0].send(1, Channel::meeting, nodes[0].frame()); }),
             ContainsSubstring("node 1 has gone"));
  goes.join();
}

TEST_CASE("a message of another length is an error, not a sum") {
  for (const std::int64_t elements : {3, 5000}) {
    MemoryNodes nodes(2);
    auto ranks = rows_of({{ElementType::float32, elements}}, ReduceOp::sum, 2, false);
    auto other = rows_of({{ElementType::float32, elements + 8}}, ReduceOp::sum, 2, false);
    std::string other_error;
    std::thread peer([&] {
      const SharedReducer::Lists* const mine[] = {&other[0].lists};
      other_error = error_of<LinkError>([&] { NodeChain(nodes[0], {1, 1}).reduce(mine); });
      nodes.links[0].reset();
    });
    const SharedReducer::Lists* const mine[] = {&ranks[1].lists};
    CHECK_THAT(error_of<LinkError>([&] {
                 NodeChain(nodes[1], {1, 1}).reduce(mine);
               }),
               ContainsSubstring("in place of"));
    nodes.links[1].reset();
    peer.join();
    CHECK(!other_error.empty());
  }
}

TEST_CASE("a cancel at any moment ends a node's reduction, and the others' when it goes") {
  std::mt19937 random(5);
  for (int trial = 0; trial < 30; ++trial) {
    MemoryNodes nodes(3);
    const int cancelled = static_cast<int>(random() % 3);
    std::atomic<int> ended{0};
    std::thread canceller([&, delay = random() % 3000] {
      std::this_thread::sleep_for(std::chrono::microseconds(delay));
      nodes[cancelled].cancel();
    });
    std::vector<std::thread> threads;
    for (int node = 0; node < 3; ++node)
      threads.emplace_back([&, node] {
        auto ranks = rows_of({{ElementType::float32, 200'000}}, ReduceOp::sum, 1, false);
        const SharedReducer::Lists* const mine[] = {&ranks[0].lists};
        try {
          NodeChain chain(nodes[node], {1, 1, 1});
          for (;;) chain.reduce(mine);
        } catch (const Error&) {
          ended += 1;
        }
        if (node == cancelled) canceller.join();
        nodes.links[static_cast<std::size_t>(node)].reset();
      });
    for (std::thread& thread : threads) thread.join();
    REQUIRE(ended == 3);
  }
}
