#include "core/step_gate.h"

#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/published.h"
#include "support/catch.h"
#include "tandem/core/error.h"

using namespace std::chrono_literals;
using tandem::CancelToken;
using tandem::StepGate;

namespace {

// Ranks that take `steps` batches, each with a micro-batch, in threads.
struct Ranks {
  Ranks(StepGate& gate, int ranks, int steps) : done(static_cast<std::size_t>(ranks)) {
    for (int rank = 0; rank < ranks; ++rank)
      threads.emplace_back([&gate, rank, steps, this] {
        try {
          for (int step = 0; step < steps && !stop; ++step) {
            gate.pass_batch(rank);
            gate.pass_micro_batch(rank);
            done[static_cast<std::size_t>(rank)] += 1;
          }
        } catch (const tandem::Cancelled&) {
          cancelled += 1;
        }
        gate.leave(rank);
      });
  }
  ~Ranks() { join(); }
  void join() {
    for (auto& thread : threads)
      if (thread.joinable()) thread.join();
  }

  std::vector<std::atomic<int>> done;
  std::atomic<int> cancelled = 0;
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
};

void wait_until(const std::function<bool()>& done) {
  while (!done()) std::this_thread::sleep_for(100us);
}

}  // namespace

TEST_CASE("all ranks run a task at the same place, once each, while nobody goes on") {
  for (const int size : {1, 2, 3}) {
    CancelToken token;
    StepGate gate(size, token);
    std::atomic<int> ran = 0, apart = 0;
    {
      Ranks ranks(gate, size, 100'000'000);
      for (int round = 1; round <= 200; ++round) {
        gate.add({.run = [&](int rank, const StepGate::Standing& standing) {
          const int mine = ranks.done[static_cast<std::size_t>(rank)];
          for (const auto& other : ranks.done) apart += other != mine;
          apart += standing.aside + standing.left + standing.first + !standing.same_place;
          ran += 1;
        }});
        if (round % 3 == 0) wait_until([&] { return ran == round * size; });
      }
      wait_until([&] { return ran == 200 * size; });
      ranks.stop = true;
    }
    CHECK(ran == 200 * size);
    CHECK(apart == 0);
  }
}

TEST_CASE("held ranks stand still and run tasks, and go on when they are released") {
  CancelToken token;
  StepGate gate(3, token);
  Ranks ranks(gate, 3, 100'000'000);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> ran = 0;
    gate.hold();
    CHECK(gate.holds());
    gate.add({.run = [&](int, const StepGate::Standing&) { ran += 1; }});
    wait_until([&] { return ran == 3; });
    const int at = ranks.done[0];
    gate.add({.run = [&](int, const StepGate::Standing&) { ran += 1; }});
    wait_until([&] { return ran == 6; });
    for (const auto& done : ranks.done) CHECK(done == at);
    gate.release();
    CHECK_FALSE(gate.holds());
    wait_until([&] { return ranks.done[0] > at; });
  }
  ranks.stop = true;
}

TEST_CASE("a task that not all ranks agree to is asked about again at later places, and run once") {
  CancelToken token;
  StepGate gate(2, token);
  std::atomic<int> first = -1, ran = 0, asked = 0, apart = 0;
  Ranks ranks(gate, 2, 100'000'000);
  gate.add({.may_run =
                [&](int rank, const StepGate::Standing&) {
                  const int here = ranks.done[static_cast<std::size_t>(rank)];
                  int unset = -1;
                  first.compare_exchange_strong(unset, here);
                  asked += 1;
                  return rank == 0 || here >= first + 5;  // rank 0 always would
                },
            .run =
                [&](int rank, const StepGate::Standing&) {
                  apart += ranks.done[static_cast<std::size_t>(rank)] < first + 5;
                  ran += 1;
                }});
  wait_until([&] { return ran == 2; });
  ranks.stop = true;
  ranks.join();
  CHECK(ran == 2);
  CHECK(apart == 0);
  CHECK(asked >= 10);
}

TEST_CASE("the token ends the wait at the gate, and what a task throws leaves its rank") {
  CancelToken token;
  StepGate gate(2, token);
  Ranks ranks(gate, 2, 100'000'000);
  gate.hold();
  std::atomic<int> ran = 0;
  gate.add({.run = [&](int, const StepGate::Standing&) { ran += 1; }});
  wait_until([&] { return ran == 2; });
  token.cancel(std::make_exception_ptr(std::runtime_error("enough")));
  ranks.join();
  CHECK(ranks.cancelled == 2);

  CancelToken fresh;
  StepGate throwing(1, fresh);
  throwing.add({.run = [](int, const StepGate::Standing&) { throw std::runtime_error("no room"); }});
  CHECK_THROWS_WITH((throwing.pass_micro_batch(0), throwing.pass_micro_batch(0)), "no room");
  throwing.pass_micro_batch(0);  // a body that has caught it goes on
}

TEST_CASE("nobody waits for ranks that have ended or stepped aside, and tasks are told of them") {
  CancelToken token;
  StepGate gate(3, token);
  gate.leave(2);
  gate.step_aside(1);
  StepGate::Standing seen;
  gate.add({.run = [&](int, const StepGate::Standing& standing) { seen = standing; }});
  for (int step = 0; step < 3; ++step) gate.pass_micro_batch(0);
  CHECK(seen.aside == 1);
  CHECK(seen.left == 1);
  gate.come_back(1);  // as at the place where rank 0 is
  std::atomic<int> ran = 0;
  gate.add({.run = [&](int, const StepGate::Standing&) { ran += 1; }});
  std::thread other([&] {
    for (int step = 0; step < 3; ++step) gate.pass_micro_batch(1);
  });
  for (int step = 0; step < 3; ++step) gate.pass_micro_batch(0);
  other.join();
  CHECK(ran == 2);
}

// Rank 0 takes batches that rank 1 does not, which waits for it meanwhile.
TEST_CASE("a rank that others wait for is let through") {
  CancelToken token;
  std::atomic<bool> waits = false;
  StepGate gate(2, token, [&](int rank) { return rank == 1 && waits; });
  std::atomic<int> ran = 0, batches = 0;
  std::thread zero([&] {
    gate.pass_micro_batch(0);
    for (int batch = 0; batch < 50; ++batch) {
      gate.pass_batch(0);
      batches += 1;
      std::this_thread::sleep_for(200us);
    }
    waits = false;
    gate.pass_micro_batch(0);
    gate.leave(0);
  });
  std::thread one([&] {
    gate.pass_micro_batch(1);
    waits = true;
    while (waits) std::this_thread::yield();
    gate.pass_micro_batch(1);
    gate.leave(1);
  });
  wait_until([&] { return batches > 5 && waits; });
  gate.add({.run = [&](int, const StepGate::Standing&) { ran += 1; }});
  zero.join();
  one.join();
  CHECK(batches == 50);
  CHECK(ran == 2);
}

TEST_CASE("ranks with different numbers of micro-batches in a window stop between windows") {
  CancelToken token;
  constexpr int kRanks = 3;
  std::array<std::atomic<bool>, kRanks> waits{};
  StepGate gate(kRanks, token, [&](int rank) { return waits[static_cast<std::size_t>(rank)].load(); });
  std::barrier window(kRanks);
  std::atomic<bool> stop = false, ends = false;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < kRanks; ++rank)
    ranks.emplace_back([&, rank] {
      auto& waiting = waits[static_cast<std::size_t>(rank)];
      for (bool last = false; !last;) {
        for (int micro_batch = 0; micro_batch < 1 + 2 * rank; ++micro_batch) {
          gate.pass_batch(rank);
          gate.pass_micro_batch(rank);
        }
        waiting = true;
        if (rank == 0) ends = stop.load();
        window.arrive_and_wait();
        last = ends;
        window.arrive_and_wait();
        waiting = false;
        gate.close_window(rank);
      }
      gate.leave(rank);
    });
  std::atomic<int> ran = 0, apart = 0;
  for (int task = 0; task < 20; ++task) {
    gate.add({.may_run = [](int, const StepGate::Standing& standing) { return standing.same_place; },
              .run =
                  [&](int, const StepGate::Standing& standing) {
                    apart += !standing.same_place;
                    ran += 1;
                  }});
    wait_until([&] { return ran == kRanks * (task + 1); });
  }
  stop = true;
  for (auto& rank : ranks) rank.join();
  CHECK(apart == 0);
}

TEST_CASE("requests of many threads and ranks that come and go never leave anybody at the gate") {
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    CancelToken token;
    StepGate gate(3, token);
    std::atomic<int> ran = 0;
    Ranks ranks(gate, 3, 300);
    std::vector<std::thread> hosts;
    for (int host = 0; host < 3; ++host)
      hosts.emplace_back([&, seed = random()] {
        std::mt19937 mine(static_cast<unsigned>(seed));
        for (int i = 0; i < 50; ++i) {
          if (mine() % 3 == 0) gate.hold();
          gate.add({.run = [&](int, const StepGate::Standing&) { ran += 1; }});
          gate.release();
        }
      });
    for (auto& host : hosts) host.join();
    gate.release();
    ranks.join();
    for (const auto& done : ranks.done) CHECK(done == 300);
  }
}

TEST_CASE("a published value is read whole while it changes") {
  struct Value {
    std::uint64_t numbers[7];
  };
  tandem::Published<Value> published;
  std::atomic<bool> stop = false;
  std::atomic<int> torn = 0, reads = 0;
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 2; ++reader)
    readers.emplace_back([&] {
      std::uint64_t last = 0;
      while (!stop) {
        const Value value = published.load();
        for (const std::uint64_t number : value.numbers) torn += number != value.numbers[0];
        torn += value.numbers[0] < last;
        last = value.numbers[0];
        reads += 1;
      }
    });
  for (std::uint64_t i = 1; i < 20'000 || reads < 1'000; ++i) {
    Value value;
    for (std::uint64_t& number : value.numbers) number = i;
    published.store(value);
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  CHECK(torn == 0);
}
