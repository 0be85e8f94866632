#include "tandem/core/wait.h"

#include <pthread.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <thread>

#include "support/catch.h"

using tandem::AdaptiveSpin;
using tandem::SpinBudget;

namespace {

constexpr SpinBudget kMost{.spins = 500, .yields = 20};

// Looks of a wait for what does not come.
int looks_in_vain(AdaptiveSpin& spin) {
  int looks = 0;
  CHECK_FALSE(spin.until([&] {
    looks += 1;
    return false;
  }));
  return looks;
}

// Waits for what comes with look number `last`; whether it was there before the thread had to sleep.
bool wait_for_look(AdaptiveSpin& spin, int last) {
  int looks = 0;
  return spin.until([&] { return ++looks == last; });
}

void fail_often(AdaptiveSpin& spin) {
  for (int i = 0; i < AdaptiveSpin::kFailures; ++i) spin.note(false, false);
}

}  // namespace

TEST_CASE("a wait ends with the look that finds what it waits for") {
  const int last = GENERATE(1, 2, 40, 500, 501, 520);
  AdaptiveSpin spin(kMost);
  CHECK(wait_for_look(spin, last));
  AdaptiveSpin of_many({.spins = 0, .yields = 4});
  CHECK(wait_for_look(of_many, last) == (last <= 5));
}

TEST_CASE("waits in which spinning helps have the whole budget, however many") {
  AdaptiveSpin spin(kMost);
  for (int i = 0; i < 100; ++i) {
    REQUIRE(spin.next() == kMost);
    REQUIRE(wait_for_look(spin, 1 + 7 * i % kMost.spins));
  }
}

TEST_CASE("a thread whose core is wanted sleeps at once, until it finds the core free") {
  AdaptiveSpin spin(kMost);
  const bool found = GENERATE(false, true);
  spin.note(found, true);
  for (int i = 0; i < 100; ++i) {
    REQUIRE(spin.next().spins == 0);
    REQUIRE((spin.next().yields > 0) == spin.asks_next());
    spin.note(found, true);
  }
  while (!spin.asks_next()) spin.note(found, true);
  spin.note(found, false);
  CHECK(spin.next() == kMost);
}

TEST_CASE("a thread that does not spin asks now and then whether its core is wanted, others do each time") {
  AdaptiveSpin spin(kMost);
  CHECK(spin.asks_next());
  spin.note(false, false);
  CHECK(spin.asks_next());
  int asked = 0;
  for (int i = 0; i < 10 * AdaptiveSpin::kTryEach; ++i) {
    spin.note(i % 2 == 0, true);
    asked += spin.asks_next();
  }
  CHECK(asked == 10);
}

TEST_CASE("spinning that did not help in many waits is tried now and then, and comes back when it helps") {
  AdaptiveSpin spin(kMost);
  for (int i = 0; i < AdaptiveSpin::kFailures; ++i) {
    REQUIRE(spin.next() == kMost);
    spin.note(false, false);
  }
  int tried = 0;
  for (int i = 0; i < 10 * AdaptiveSpin::kTryEach; ++i) {
    tried += spin.next() == kMost;
    REQUIRE(spin.next().yields == kMost.yields);
    spin.note(false, false);
  }
  CHECK(tried == 10);
  while (spin.next() != kMost) spin.note(false, false);
  REQUIRE(wait_for_look(spin, kMost.spins));
  CHECK(spin.next() == kMost);
  fail_often(spin);
  while (spin.next() == kMost) spin.note(false, false);
  spin.note(true, false);  // before it had to sleep
  CHECK(spin.next() == kMost);
}

TEST_CASE("whatever has happened, spinning is back soon after the core is free and waits are short") {
  constexpr int kLength = 6;
  const bool fails_first = GENERATE(false, true);
  for (int history = 0; history < 1 << (2 * kLength); ++history) {
    AdaptiveSpin spin(kMost);
    if (fails_first) fail_often(spin);
    for (int i = 0; i < kLength; ++i) spin.note(history >> (2 * i) & 1, history >> (2 * i + 1) & 1);
    int waits = 0;
    for (; spin.next() != kMost; ++waits) {
      const bool thought_wanted = spin.next().yields < kMost.yields;
      spin.note(true, thought_wanted && !spin.asks_next());
    }
    REQUIRE(waits <= AdaptiveSpin::kTryEach);
  }
}

TEST_CASE("more threads than cores never spin, whatever happens") {
  const SpinBudget few{.spins = 0, .yields = 4};
  AdaptiveSpin spin(few);
  for (int i = 0; i < 200; ++i) {
    REQUIRE(spin.next().spins == 0);
    REQUIRE_FALSE(spin.asks_next());
    REQUIRE(looks_in_vain(spin) == few.yields + 1);
  }
}

// The kernel says so: both offer their core to the other.
TEST_CASE("two threads on one core do not spin for each other") {
  cpu_set_t allowed, one;
  REQUIRE(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  CPU_ZERO(&one);
  for (int core = 0; CPU_COUNT(&one) == 0; ++core)
    if (CPU_ISSET(core, &allowed)) CPU_SET(core, &one);
  constexpr std::uint32_t kTurns = 4000;
  std::atomic<std::uint32_t> turn{0};
  std::array<long, 2> looks{};
  const auto play = [&](std::uint32_t me) {
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    AdaptiveSpin spin({.spins = 2000, .yields = 20});
    for (std::uint32_t mine = me; mine < kTurns; mine += 2) {
      const auto is_mine = [&] {
        looks[me] += 1;
        return turn.load(std::memory_order_acquire) == mine;
      };
      if (!spin.until(is_mine))
        while (!is_mine()) turn.wait(mine - 1, std::memory_order_acquire);
      turn.store(mine + 1, std::memory_order_release);
      turn.notify_all();
    }
  };
  std::thread other([&] { play(1); });
  std::thread first([&] { play(0); });
  other.join();
  first.join();
  CHECK(turn == kTurns);
  // Without learning, each wait would take more than 2,000.
  CHECK(looks[0] + looks[1] < 200L * kTurns);
}
