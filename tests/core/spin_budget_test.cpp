#include "core/spin_budget.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

#include "support/catch.h"

using tandem::shares_core;
using tandem::spin_until;

namespace {

std::vector<int> allowed_cores() {
  cpu_set_t allowed;
  REQUIRE(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &allowed)) cores.push_back(core);
  return cores;
}

void stay_on(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

// Two threads that wait in turn, `rounds` times each, on one core each; how often each found that it shares its core.
std::vector<int> shared_when_in_turn(int first_core, int second_core, int rounds) {
  std::atomic<int> turn{0};
  std::vector<int> shared(2);
  const auto wait_in_turn = [&](int self, int core) {
    stay_on(core);
    for (int i = 0; i < rounds; ++i) {
      while (turn.load() != 2 * i + self) std::this_thread::yield();
      shared[static_cast<std::size_t>(self)] += shares_core();
      turn += 1;
    }
  };
  std::thread first(wait_in_turn, 0, first_core), second(wait_in_turn, 1, second_core);
  first.join();
  second.join();
  return shared;
}

}  // namespace

TEST_CASE("threads that wait in turn on one core find that they share it, each time, on two cores never again") {
  const std::vector<int> cores = allowed_cores();
  // The first wait may still find an earlier test's thread, or nobody.
  constexpr int kRounds = 50;
  for (int times : shared_when_in_turn(cores.front(), cores.front(), kRounds)) CHECK(times >= kRounds - 1);
  if (cores.size() < 2) return;
  for (int times : shared_when_in_turn(cores.front(), cores.back(), kRounds)) CHECK(times <= 1);
}

TEST_CASE("looking ends with the look that finds what it waits for, or when all looks are spent") {
  const bool shared = GENERATE(false, true);
  for (int last : {1, 2, 32, 33, 60, 500, 1000}) {
    if (shared) std::thread([] { shares_core(); }).join();
    int looks = 0;
    const bool found = spin_until([&] { return ++looks == last; }, 500);
    CHECK(found == (looks == last));
    if (last <= 500) CHECK(looks == last);
    if (last > 500) CHECK(looks <= 500 + 20);  // and those between which the core was offered
  }
  CHECK_FALSE(spin_until([] { return true; }, 0));
}

TEST_CASE("a thread whose peer needs the same core gives it at once") {
  const int core = allowed_cores().front();
  constexpr int kRounds = 2000;
  std::atomic<int> turn{0};
  std::vector<int> found(2);
  const auto take_turns = [&](int self) {
    stay_on(core);
    for (int i = 0; i < kRounds; ++i) {
      const auto mine = [&] { return turn.load() == 2 * i + self; };
      // So few looks that they never last until a time slice ends: only an offer lets the other run.
      found[static_cast<std::size_t>(self)] += spin_until(mine, 40);
      while (!mine()) std::this_thread::yield();
      turn += 1;
    }
  };
  std::thread first(take_turns, 0), second(take_turns, 1);
  first.join();
  second.join();
  for (int times : found) CHECK(times > kRounds / 2);
}
