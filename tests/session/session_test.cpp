// Training that a host starts: its life, its errors, and many of them.
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stop_token>
#include <thread>
#include <vector>

#include "session/session_training.h"
#include "support/threads.h"
#include "tandem/session/session.h"

using namespace tandem;
using namespace tandem::test;
namespace fs = std::filesystem;

namespace {

std::size_t resident_bytes() {
  std::size_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * static_cast<std::size_t>(::getpagesize());
}

}  // namespace

TEST_CASE("a session trains as launch does, to the bit, also when it is paused on the way") {
  for (const int accumulation : {1, 3}) {
    CAPTURE(accumulation);
    LaunchConfig config = ranks(2);
    config.gradient_accumulation_steps = accumulation;
    std::vector<at::Tensor> launched, undisturbed, paused;
    launch(config, body({.epochs = 8, .weights = &launched}));
    Session session;
    CHECK(session.status().state == SessionState::idle);
    session.start(config, body({.epochs = 8, .weights = &undisturbed}));
    session.wait();
    CHECK(session.status().state == SessionState::ended);
    session.start(config, body({.epochs = 8, .weights = &paused}));
    for (int i = 0; i < 6; ++i) {
      session.pause();
      session.resume();
      session.pause();
      std::this_thread::sleep_for(2ms);
      session.snapshot();
      session.resume();
    }
    session.wait();
    REQUIRE(launched.size() == 2);
    REQUIRE(undisturbed.size() == 2);
    REQUIRE(paused.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(at::equal(launched[i], undisturbed[i]));
      CHECK(at::equal(launched[i], paused[i]));
    }
  }
}

TEST_CASE("wait throws what launch would, status has its text, and another training starts") {
  Log log;
  Session session(log.options());
  for (int round = 0; round < 3; ++round) {
    session.start(ranks(2), [](Accelerator& accelerator) {
      if (accelerator.rank() == 1) throw std::out_of_range("no such splat");
      accelerator.wait_for_everyone();
    });
    auto saved = session.save_now("/dev/null/state");
    auto weights = session.snapshot();
    for (int again = 0; again < 2; ++again) {
      try {
        session.wait();
        FAIL("wait did not throw");
      } catch (const RankError& error) {
        CHECK(error.rank() == 1);
        CHECK_THROWS_AS(error.rethrow_cause(), std::out_of_range);
      }
    }
    CHECK(session.status().state == SessionState::failed);
    CHECK_THAT(session.status().error, ContainsSubstring("rank 1: no such splat"));
    CHECK_THROWS_AS(session.wait_for(1ms), RankError);
    CHECK_THROWS_AS(saved.get(), Error);
    CHECK_THROWS_AS(weights.get(), Error);
    session.start(ranks(2), body({.epochs = 2}));
    session.wait();
    CHECK(session.status().state == SessionState::ended);
    CHECK(session.status().error.empty());
  }
  session.start({.gpus = 1, .cpu = 1}, body({}));
  CHECK_THROWS_AS(session.wait(), ConfigError);
  CHECK(session.progress().state == SessionState::failed);
}

TEST_CASE("what has no meaning at the moment has no effect, and starting twice is an error") {
  Session session;
  const auto everything = [&] {
    session.pause();
    session.resume();
    session.request_stop();
    session.cancel();
    session.wait();
    CHECK(session.wait_for(0s));
    CHECK_THROWS_AS(session.save_now("/dev/null/state").get(), Error);
  };
  everything();
  CHECK_THROWS_AS(session.snapshot().get(), Error);
  session.start(ranks(2), body({}));
  CHECK_THROWS_WITH(session.start(ranks(1), body({})), ContainsSubstring("cannot start: it is "));
  CHECK_FALSE(session.wait_for(1ms));
  session.cancel();
  session.wait();
  CHECK(session.status().state == SessionState::cancelled);
  everything();
  CHECK(session.status().state == SessionState::cancelled);
  std::atomic<int> errors = 0;
  session.start(ranks(1), [&](Accelerator&) {
    for (const auto& call : std::vector<std::function<void()>>{
             [&] { session.wait(); }, [&] { session.wait_for(1ms); }, [&] { session.start(ranks(1), body({})); },
             [&] { session.evaluate_with([](const ModelSnapshot&) { return 0; }); }}) {
      try {
        call();
      } catch (const ConfigError&) {
        errors += 1;
      }
    }
  });
  session.wait();
  CHECK(errors == 4);
}

TEST_CASE("a body that only opens micro-batches is cancelled") {
  Session session;
  session.start(ranks(1), [](Accelerator& accelerator) {
    for (;;) auto window = accelerator.accumulate();
  });
  REQUIRE(reaches(session, SessionState::running));
  session.cancel();
  session.wait();
  CHECK(session.status().state == SessionState::cancelled);
}

TEST_CASE("a stop token cancels, and so does the destructor") {
  std::stop_source source;
  LaunchConfig config = ranks(2);
  config.cancel = source.get_token();
  Session session;
  session.start(config, body({}));
  wait_for_step(session, 1);
  source.request_stop();
  session.wait();
  CHECK(session.status().state == SessionState::cancelled);
  const auto before = threads_of_this_process();
  for (int i = 0; i < 20; ++i) {
    Session dropped;
    dropped.start(ranks(2), body({}));
    if (i % 2 == 0) wait_for_step(dropped, 1);
    if (i % 3 == 0) dropped.pause();
  }
  CHECK(no_more_threads_than(before));
}

TEST_CASE("sessions run side by side with results of their own") {
  std::vector<at::Tensor> alone[2], together[2];
  const auto configured = [](std::uint64_t seed) {
    LaunchConfig config = ranks(2);
    config.seed = seed;
    return config;
  };
  for (int i = 0; i < 2; ++i)
    launch(configured(static_cast<std::uint64_t>(i)), body({.epochs = 20, .weights = &alone[i]}));
  {
    Session first, second;
    first.start(configured(0), body({.epochs = 20, .weights = &together[0]}));
    second.start(configured(1), body({.epochs = 20, .weights = &together[1]}));
    first.wait();
    second.wait();
  }
  for (int i = 0; i < 2; ++i) CHECK(at::equal(alone[i].at(0), together[i].at(0)));
  CHECK_FALSE(at::equal(alone[0].at(0), alone[1].at(0)));
}

TEST_CASE("a thousand sessions in turn leave nothing behind") {
  auto session = std::make_unique<Session>();
  const auto handles = [] { return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator()); };
  session->start(ranks(2), body({.epochs = 1}));
  session->wait();
  const auto files = handles();
  const auto threads = threads_of_this_process();
  const auto run = [&](int sessions) {
    for (int i = 0; i < sessions; ++i) {
      if (i % 2 == 0) session = std::make_unique<Session>();
      session->start(ranks(2), body({.epochs = 1}));
      if (i % 3 == 1) session->cancel();
      session->wait();
    }
    ::malloc_trim(0);  // what malloc keeps for itself is no concern here
    return resident_bytes();
  };
  const auto before = run(200), after = run(800);
  CHECK(after < before + 800 * 4'000);  // bytes a session
  CHECK(handles() == files);
  CHECK(no_more_threads_than(threads));
}

TEST_CASE("a body may own what owns its session") {
  static std::atomic<bool> gone;
  static std::atomic<int> late;
  struct SetsGone {
    ~SetsGone() { gone = true; }
  };
  struct Owner {
    SetsGone destroyed_last;
    Session session{{.on_event = [](const SessionEvent&) { late += gone; }}};
  };
  const auto before = threads_of_this_process();
  for (const bool waits : {true, false}) {
    gone = false;
    auto owner = std::make_shared<Owner>();
    const std::weak_ptr<Owner> watched = owner;
    std::atomic<bool> begun = false, goes_on = false;
    owner->session.start(ranks(2), [owner, &begun, &goes_on](Accelerator&) {
      begun = true;
      while (!goes_on) std::this_thread::sleep_for(1ms);
    });
    while (waits && !begun) std::this_thread::sleep_for(1ms);
    owner.reset();
    goes_on = true;
    for (int i = 0; i < 20'000 && !watched.expired(); ++i) std::this_thread::sleep_for(1ms);
    CHECK(watched.expired());
  }
  CHECK(no_more_threads_than(before));
  CHECK(late == 0);
}
