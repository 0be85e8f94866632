// The ranks of several nodes as one group: calls, mail, reductions and failures. Needs no LibTorch, so that
// ThreadSanitizer sees it.
#include <numeric>
#include <random>

#include "comm/shared_reducer.h"
#include "support/catch.h"
#include "support/node_ranks.h"
#include "support/node_sums.h"

using namespace tandem;
using namespace tandem::comm;
using namespace tandem::test;

namespace {

const std::vector<std::vector<int>> kNodes{{1, 1}, {2, 1}, {1, 2, 1}, {2, 2}, {3, 1, 2, 2}, {2}};

int world_of(const std::vector<int>& nodes) { return std::accumulate(nodes.begin(), nodes.end(), 0); }

// What all ranks' nodes ended with contains `text`, or says that the others have gone.
void check_all_end(const std::vector<std::string>& errors, const std::string& text) {
  std::size_t told = 0;
  for (const std::string& error : errors) {
    INFO(error);
    CHECK_FALSE(error.empty());
    told += error.find(text) != std::string::npos;
  }
  CHECK(told > 0);
}

void add_up(SharedReducer& reducer, std::vector<float>& values, ReduceOp op, int root = -1) {
  const ElementRow row{values.data(), static_cast<std::int64_t>(values.size()), ElementType::float32};
  reducer.reduce({.operation = "all_reduce", .reduce = op, .root = root}, {&row, 1}, {&row, 1}, op, root);
}

}  // namespace

TEST_CASE("ranks of several nodes meet and see what each says") {
  for (const std::vector<int>& nodes : kNodes) {
    CAPTURE(nodes);
    const auto errors = run_on_nodes(nodes, [&](RankGroup& group, int rank) {
      for (std::uint64_t round = 0; round < 50; ++round) {
        const auto all = group.meet(rank, {.operation = "meet"}, round * 100 + static_cast<std::uint64_t>(rank));
        if (all.size() != static_cast<std::size_t>(world_of(nodes))) throw Error("others than all have met");
        for (std::size_t peer = 0; peer < all.size(); ++peer)
          if (all[peer] != round * 100 + peer) throw Error("rank " + std::to_string(peer) + " said something else");
        if (round % 7 == 0) {
          const std::string mine(static_cast<std::size_t>(rank) * 200'000 * (round == 7),
                                 static_cast<char>('a' + rank));
          const auto said = group.gather_bytes(rank, {.operation = "gather"}, mine);
          for (std::size_t peer = 0; peer < all.size(); ++peer)
            if (said[peer] != std::string(peer * 200'000 * (round == 7), static_cast<char>('a' + peer)))
              throw Error("rank " + std::to_string(peer) + " gave other bytes");
        }
      }
    });
    CHECK(errors == no_errors(nodes));
  }
}

TEST_CASE("a broadcast between nodes overwrites rows of any lengths") {
  for (int root = 0; root < 3; ++root) {
    const std::vector<int> nodes{1, 1, 1};
    const auto errors = run_on_nodes(nodes, [&](RankGroup& group, int rank) {
      std::vector<std::vector<std::byte>> rows;
      for (const std::size_t length : {0U, 7U, 300'000U, 0U, 262'137U, 1U, 2'500'000U})
        rows.emplace_back(length, static_cast<std::byte>(rank));
      group.carry(rank, {.operation = "broadcast"}, nullptr, [&](const RankGroup::Call&, NodeExchange& exchange) {
        std::vector<std::span<std::byte>> spans(rows.begin(), rows.end());
        exchange.broadcast(root, spans);
      });
      for (const auto& row : rows)
        for (const std::byte one : row)
          if (one != static_cast<std::byte>(root)) throw Error("a byte is not the root's");
    });
    CHECK(errors == no_errors(nodes));
  }
}

TEST_CASE("reductions over nodes have the bits of one process, those that are waited for and those that are not") {
  for (const std::vector<int>& nodes : kNodes) {
    CAPTURE(nodes);
    const int world = world_of(nodes);
    const auto value = [](int rank, int call, std::size_t at) {
      return 1.0F / static_cast<float>(static_cast<std::size_t>(3 + rank + call) + at % 97);
    };
    const auto wanted = [&](int call, std::size_t at, ReduceOp op) {
      float sum = value(0, call, at);
      for (int rank = 1; rank < world; ++rank) sum += value(rank, call, at);
      return op == ReduceOp::mean ? sum / static_cast<float>(world) : sum;
    };
    const auto errors = run_on_nodes(nodes, [&](RankGroup& group, int rank) {
      SharedReducer reducer(group, rank);
      const auto filled = [&](std::size_t length, int call) {
        std::vector<float> values(length);
        for (std::size_t i = 0; i < length; ++i) values[i] = value(rank, call, i);
        return values;
      };
      const auto check = [&](const std::vector<float>& got, int call, ReduceOp op) {
        for (std::size_t i = 0; i < got.size(); ++i)
          if (got[i] != wanted(call, i, op)) throw Error("another result in call " + std::to_string(call));
      };
      std::mt19937 delays(static_cast<unsigned>(rank));
      for (int call = 0; call < 6; ++call) {
        const std::size_t length = call % 3 == 0 ? 10 : call % 3 == 1 ? 2000 : 150'000;
        std::vector<float> started = filled(length, call + 50), results(length);
        const ElementRow from{started.data(), static_cast<std::int64_t>(length), ElementType::float32};
        const ElementRow to{results.data(), static_cast<std::int64_t>(length), ElementType::float32};
        const SharedReducer::Lists lent{{&from, 1}, {&to, 1}, ReduceOp::mean};
        // Some ranks begin before the call that all wait for, others after it.
        const bool before = delays() % 2 == 0;
        std::uint64_t number = 0;
        if (before) number = reducer.start({.operation = "all_reduce"}, lent);
        std::vector<float> now = filled(length, call);
        add_up(reducer, now, ReduceOp::sum);
        check(now, call, ReduceOp::sum);
        if (!before) number = reducer.start({.operation = "all_reduce"}, lent);
        std::vector<float> of_root = filled(length, call);
        add_up(reducer, of_root, ReduceOp::sum, world - 1);
        if (rank == world - 1)
          check(of_root, call, ReduceOp::sum);
        else if (of_root != filled(length, call))
          throw Error("a rank that is not the root has got something");
        reducer.wait(number);
        check(results, call + 50, ReduceOp::mean);
      }
    });
    CHECK(errors == no_errors(nodes));
  }
}

TEST_CASE("different calls on two nodes end both, with both calls") {
  for (const std::vector<int>& nodes : {std::vector<int>{1, 1}, std::vector<int>{2, 1}, std::vector<int>{1, 2, 1}}) {
    const int last = world_of(nodes) - 1;
    const auto errors = run_on_nodes(nodes, [&](RankGroup& group, int rank) {
      group.meet(rank, {.operation = "barrier"});
      if (rank == last) {
        group.meet(rank, {.operation = "broadcast", .root = 1});
      } else {
        group.meet(rank, {.operation = "gather_objects"});
      }
    });
    check_all_end(errors, "call 2 is");
    check_all_end(errors, "broadcast from rank 1 on rank " + std::to_string(last));
  }
}

TEST_CASE("a call that one node alone makes among its own ranks is found at the next meeting") {
  const auto errors = run_on_nodes({2, 1}, [&](RankGroup& group, int rank) {
    if (rank < 2) {
      const RankGroup::Call call(group, rank, {.operation = "share"}, nullptr);
    }
    group.meet(rank, {.operation = "barrier"});
  });
  check_all_end(errors, "of rank");
}

TEST_CASE("a node whose ranks return early ends the others, which wait for them") {
  for (const int early : {0, 1}) {
    const auto in_a_call = run_on_nodes({1, 1}, [&](RankGroup& group, int rank) {
      group.meet(rank, {.operation = "barrier"});
      if (rank != early) group.meet(rank, {.operation = "all_gather"});
    });
    check_all_end(in_a_call, "rank " + std::to_string(early) + " returned from its body while rank " +
                                 std::to_string(1 - early) + " waits for it in call 2, all_gather");
    const auto in_a_reduction = run_on_nodes({1, 1}, [&](RankGroup& group, int rank) {
      if (rank == early) return;
      SharedReducer reducer(group, rank);
      std::vector<float> values(5000);
      const ElementRow row{values.data(), 5000, ElementType::float32};
      const SharedReducer::Lists lent{{&row, 1}, {&row, 1}, ReduceOp::sum};
      try {
        reducer.wait(reducer.start({.operation = "all_reduce"}, lent));
      } catch (...) {
        group.token().cancel(std::current_exception(), rank);
        group.posted().withdraw(rank);
        throw;
      }
    });
    check_all_end(in_a_reduction, "rank " + std::to_string(early) + " returned from its body while rank");
  }
}

TEST_CASE("nodes that reduce different gradients are told both") {
  const auto errors = run_on_nodes({1, 1}, [&](RankGroup& group, int rank) {
    SharedReducer reducer(group, rank);
    std::vector<float> values(5000);
    const ElementRow row{values.data(), 5000, ElementType::float32};
    const SharedReducer::Lists lent{{&row, 1}, {&row, 1}, ReduceOp::sum};
    try {
      reducer.wait(reducer.start({.operation = "all_reduce", .elements = 5000 + rank}, lent));
    } catch (...) {
      group.token().cancel(std::current_exception(), rank);
      group.posted().withdraw(rank);
      throw;
    }
  });
  check_all_end(errors, "ranks reduce different gradients: reduction 1 is");
}

TEST_CASE("a rank that throws ends its node, and the others see that it has gone") {
  const auto errors = run_on_nodes({2, 2}, [&](RankGroup& group, int rank) {
    group.meet(rank, {.operation = "barrier"});
    if (rank == 3) throw Error("rank 3 has had enough");
    group.meet(rank, {.operation = "barrier"});
  });
  CHECK(errors[3] == "rank 3 has had enough");
  check_all_end({errors[0], errors[1]}, "node 1 has gone");
}
