#include "core/thread_team.h"

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <set>
#include <thread>

#include "core/rendezvous.h"
#include "core/time_slice.h"
#include "support/catch.h"
#include "support/threads.h"
#include "tandem/core/error.h"

using tandem::CancelToken;
using tandem::ThreadTeam;
using tandem::time_slice;
using tandem::test::no_more_threads_than;
using tandem::test::threads_of_this_process;

TEST_CASE("each thread runs the body with its number, under its name") {
  CancelToken token;
  std::mutex mutex;
  std::set<std::string> names;
  ThreadTeam team({.size = 3, .name = "rank"}, token, [&](int index) {
    char name[32] = {};
    pthread_getname_np(pthread_self(), name, sizeof name);
    const std::lock_guard lock(mutex);
    names.insert(name);
    CHECK(name == "rank " + std::to_string(index));
  });
  team.join();
  CHECK(names == std::set<std::string>{"rank 0", "rank 1", "rank 2"});
  CHECK_FALSE(token.cancelled());
}

TEST_CASE("threads of a team ask for short time slices, where the kernel tells what a thread has") {
  const std::uint64_t before = time_slice();
  std::atomic<std::uint64_t> within{0};
  CancelToken token;
  ThreadTeam({.size = 1}, token, [&](int) { within = time_slice(); }).join();
  CHECK(within == (before == 0 ? 0 : 100'000));
  CHECK(time_slice() == before);
}

TEST_CASE("the first exception of a body fires the token with its rank") {
  CancelToken token;
  tandem::Rendezvous rendezvous(3, token);
  ThreadTeam team({.size = 3}, token, [&](int index) {
    if (index == 1) throw std::runtime_error("disk on fire");
    rendezvous.wait(index);
  });
  team.join();
  CHECK(token.rank() == 1);
  CHECK_THROWS_WITH(std::rethrow_exception(token.reason()), "disk on fire");
}

TEST_CASE("wait_for tells whether all bodies have ended") {
  CancelToken token;
  std::atomic<bool> go{false};
  ThreadTeam team({.size = 2}, token, [&](int) { go.wait(false); });
  CHECK_FALSE(team.wait_for(std::chrono::milliseconds(10)));
  go = true;
  go.notify_all();
  CHECK(team.wait_for(std::chrono::hours(1)));
}

TEST_CASE("destroying a running team cancels and joins it") {
  CancelToken token;
  tandem::Rendezvous rendezvous(3, token);
  {
    ThreadTeam team({.size = 2}, token, [&](int index) { rendezvous.wait(index); });
  }
  CHECK(token.cancelled());
}

TEST_CASE("hundreds of teams leave no thread behind") {
  const auto run_team = [](int i) {
    CancelToken token;
    ThreadTeam team({.size = 4}, token, [&](int index) {
      if (index == i % 5) throw i;
    });
    team.join();
  };
  run_team(0);  // a sanitizer may start a thread of its own
  const auto before = threads_of_this_process();
  for (int i = 0; i < 300; ++i) run_team(i);
  CHECK(no_more_threads_than(before));
}

TEST_CASE("a team is woken when the token fires, and joins without a thread that was given up") {
  CancelToken token;
  std::atomic<bool> go{false};
  auto& forever = *new std::atomic<bool>{false};  // for a thread that outlives the test
  ThreadTeam team({.size = 2}, token, [&go, &forever](int index) {
    if (index == 0) return go.wait(false);
    forever.wait(false);
  });
  std::thread canceller([&] { token.cancel(std::make_exception_ptr(tandem::Error("of the test"))); });
  CHECK_FALSE(team.wait_for(std::chrono::hours(1)));
  canceller.join();
  team.abandon(1);
  go = true;
  go.notify_all();
  team.join();
  CHECK(team.wait_for(std::chrono::hours(1)));
}
