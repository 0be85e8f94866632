// What nodes send each other beside calls: queues and claims. Needs no LibTorch, so that ThreadSanitizer sees it.
#include "comm/nodes/side_traffic.h"

#include <chrono>
#include <memory>
#include <thread>

#include "core/spsc_ring.h"
#include "support/catch.h"
#include "support/node_ranks.h"

using namespace tandem;
using namespace tandem::comm;
using namespace tandem::test;

namespace {

const std::vector<std::vector<int>> kSideNodes{{1, 1}, {2, 1}, {1, 2, 1}, {2, 2}};

// The traffic of the node, which all of its ranks get; they go on together.
SideTraffic& traffic_of(RankGroup& group, int rank) {
  SideTraffic* const mine = rank == group.place().first_rank ? &group.side_traffic() : nullptr;
  const RankGroup::Call call(group, rank, {.operation = "share"}, mine);
  return *static_cast<SideTraffic*>(const_cast<void*>(call.object(group.place().first_rank)));
}

// One end of a queue.
struct Taker {
  Taker(SideTraffic& traffic, SideTraffic::Queue queue, std::size_t room, CancelToken& token)
      : traffic(traffic), queue(queue), ring(room, token) {
    traffic.open(queue, room,
                 {.take = [this](std::string_view bytes) { ring.push(std::string(bytes)); },
                  .end = [this] { ring.close_producer(); }});
  }
  ~Taker() { traffic.close(queue); }

  std::optional<std::string> take() {
    auto bytes = ring.pop();
    if (bytes) traffic.taken(queue);
    return bytes;
  }

  SideTraffic& traffic;
  const SideTraffic::Queue queue;
  SpscRing<std::string> ring;
};

std::string message_of(std::uint64_t number, int rank, int count) {
  // Some are longer than a frame.
  return std::to_string(number) + ":" + std::to_string(rank) + ":" + std::to_string(count) +
         std::string(count % 7 == 0 ? 600'000 : 10, 'x');
}

}  // namespace

TEST_CASE("queues between nodes give messages in order, and one that is full holds no other up") {
  for (const std::vector<int>& nodes : kSideNodes) {
    CAPTURE(nodes);
    constexpr int kMessages = 40;
    constexpr std::size_t kRoom = 3;
    const auto errors = run_on_nodes(nodes, [&](RankGroup& group, int rank) {
      SideTraffic& traffic = traffic_of(group, rank);
      const auto push = [&](std::uint64_t number, int to, int count) {
        traffic.push({number, to}, [=](std::string& bytes) { bytes += message_of(number, to, count); });
      };
      if (rank == 0) {
        for (int to = nodes[0]; to < group.world_size(); ++to)
          for (int i = 0; i < static_cast<int>(kRoom); ++i) push(1, to, i);  // which fills it
        for (int i = 0; i < kMessages; ++i)
          for (int to = nodes[0]; to < group.world_size(); ++to) push(2, to, i);
        for (int to = nodes[0]; to < group.world_size(); ++to)
          for (const std::uint64_t number : {1U, 2U}) traffic.end({number, to});
      } else if (group.place().node > 0) {
        Taker full(traffic, {1, rank}, kRoom, group.token()), other(traffic, {2, rank}, kRoom, group.token());
        const auto expect_all = [&](Taker& taker, int count) {
          for (int i = 0; i < count; ++i)
            if (taker.take() != message_of(taker.queue.number, rank, i)) throw Error("another message has come");
          if (taker.take()) throw Error("there was one too many");
        };
        expect_all(other, kMessages);
        expect_all(full, static_cast<int>(kRoom));
      }
    });
    CHECK(errors == no_errors(nodes));
  }
}

TEST_CASE("no more is sent than a reader has room for, and nothing to one that has closed") {
  const std::vector<int> nodes{1, 1};
  std::atomic<int> pushed{0};
  const auto errors = run_on_nodes(nodes, [&](RankGroup& group, int rank) {
    SideTraffic& traffic = traffic_of(group, rank);
    const SideTraffic::Queue queue{traffic.next_number(), 1};
    const auto write = [](std::string& bytes) { bytes += "a"; };
    if (rank == 0) {
      for (int i = 0; i < 5; ++i) {
        if (!traffic.push(queue, write)) throw Error("it was closed too early");
        pushed += 1;
      }
      group.meet(rank, {.operation = "barrier"});
      while (traffic.push(queue, write)) {
      }
      traffic.end(queue);
    } else {
      Taker taker(traffic, queue, 2, group.token());
      for (int i = 0; i < 5; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (pushed > i + 2) throw Error("more was pushed than there is room for");
        taker.take();
      }
      group.meet(rank, {.operation = "barrier"});
    }
  });
  CHECK(errors == no_errors(nodes));
}

TEST_CASE("a queue that has ended before it is opened ends at once") {
  const std::vector<int> nodes{1, 2};
  const auto errors = run_on_nodes(nodes, [&](RankGroup& group, int rank) {
    SideTraffic& traffic = traffic_of(group, rank);
    if (rank == 0)
      for (const int to : {1, 2}) traffic.end({1, to});
    group.meet(rank, {.operation = "barrier"});
    if (rank == 0) return;
    Taker taker(traffic, {1, rank}, 2, group.token());
    if (taker.take()) throw Error("something has come");
  });
  CHECK(errors == no_errors(nodes));
}

TEST_CASE("what all nodes claim alike is no error, nor what some do not claim") {
  for (const std::vector<int>& nodes : kSideNodes) {
    const auto errors = run_on_nodes(nodes, [&](RankGroup& group, int rank) {
      SideTraffic& traffic = traffic_of(group, rank);
      if (rank != group.place().first_rank) return;
      for (int i = 0; i < 100; ++i) traffic.claim("order " + std::to_string(i), std::to_string(i * i));
      traffic.claim("only of node " + std::to_string(group.place().node), "x");
      if (group.place().node > 0) traffic.claim("of others", std::to_string(group.place().node));
    });
    CHECK(errors == no_errors(nodes));
  }
}

TEST_CASE("a claim that differs ends all nodes, with both values, whichever comes first") {
  for (const int late : {0, 1, 2}) {
    const auto errors = run_on_nodes({1, 1, 1}, [&](RankGroup& group, int rank) {
      SideTraffic& traffic = traffic_of(group, rank);
      if (rank == late) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      traffic.claim("the order", rank == 1 ? "backwards" : "forwards");
    });
    INFO(errors[0]);
    CHECK(errors[0] == "the order differs between nodes: node 0 has forwards, node 1 has backwards");
  }
}

TEST_CASE("who waits for room ends when another node fails") {
  const auto errors = run_on_nodes({1, 1}, [&](RankGroup& group, int rank) {
    SideTraffic& traffic = traffic_of(group, rank);
    const SideTraffic::Queue queue{1, 1};
    if (rank == 1) {
      Taker taker(traffic, queue, 1, group.token());
      taker.take();
      throw Error("rank 1 has had enough");
    }
    for (int i = 0; i < 3; ++i) traffic.push(queue, [](std::string& bytes) { bytes += "a"; });
    group.meet(rank, {.operation = "barrier"});
  });
  CHECK(errors[1] == "rank 1 has had enough");
  CHECK_FALSE(errors[0].empty());
}
