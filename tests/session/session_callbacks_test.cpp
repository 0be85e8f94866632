// What a session calls of its host's.
#include <deque>
#include <future>
#include <memory>

#include "session/session_training.h"
#include "support/error_of.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;

TEST_CASE("what a callback throws ends the session with that error") {
  Session session({.on_event = [](const SessionEvent& event) {
    if (event.kind == SessionEvent::Kind::step) throw std::logic_error("the plot has no axis");
  }});
  session.start(ranks(2), body({}));
  CHECK_THROWS_AS(session.wait(), std::logic_error);
  CHECK(session.status().state == SessionState::failed);
  CHECK(session.status().error == "the plot has no axis");
  // Also in one that takes a snapshot.
  Session other;
  other.start(ranks(1), body({}));
  other.snapshot([](const ModelSnapshot&) { throw std::logic_error("no picture"); });
  CHECK_THROWS_WITH(other.wait(), "no picture");
}

// With those that were left out.
std::int64_t count_of(const std::vector<SessionEvent>& events) {
  std::int64_t count = 0;
  for (const SessionEvent& event : events) count += 1 + event.left_out;
  return count;
}

TEST_CASE("each epoch and each closed window has its event, or is counted by the next") {
  Log log;
  SessionOptions options = log.options();
  options.step_interval = 0ms;
  Session session(options);
  session.start(ranks(2), [](Accelerator& accelerator) {
    std::this_thread::sleep_for(30ms);  // an event would be due before the first window is closed
    body({.epochs = 3})(accelerator);
  });
  session.wait();
  REQUIRE(log.has(SessionEvent::Kind::ended));
  const auto epochs = log.of(SessionEvent::Kind::epoch), steps = log.of(SessionEvent::Kind::step);
  CHECK(count_of(epochs) == 3);
  std::int64_t epoch = -1, step = 0;
  for (const SessionEvent& event : epochs) CHECK(event.progress.epoch == (epoch += 1 + event.left_out));
  CHECK(count_of(steps) == 3 * 6);
  for (const SessionEvent& event : steps) CHECK(event.progress.step == (step += 1 + event.left_out));
}

TEST_CASE("every epoch has its event where that is asked for, however short it and however slow the callback is") {
  Log log;
  SessionOptions options = log.options();
  const auto note = options.on_event;
  options.on_event = [&](const SessionEvent& event) {
    note(event);
    if (event.kind == SessionEvent::Kind::epoch && event.progress.epoch < 3) std::this_thread::sleep_for(30ms);
  };
  options.step_interval = GENERATE(0ms, 16ms, 1h);
  options.every_epoch = true;
  Session session(options);
  session.start(ranks(2), body({.epochs = 100, .points = Points(4)}));
  session.wait();
  REQUIRE(log.has(SessionEvent::Kind::ended));
  const auto epochs = log.of(SessionEvent::Kind::epoch);
  REQUIRE(epochs.size() == 100);
  std::int64_t epoch = 0;
  for (const SessionEvent& event : epochs) {
    CHECK(event.progress.epoch == epoch++);
    CHECK(event.progress.epoch_step == 0);
    CHECK(event.left_out == 0);
  }
}

TEST_CASE("a save and a snapshot that are not waited for tell how they ended, where callbacks are called") {
  const TempDir directory;
  std::mutex mutex;
  std::vector<std::string> answers;
  const auto tell = [&](const std::string& text) {
    const std::lock_guard lock(mutex);
    answers.push_back(text);
  };
  const auto on_error = [&](const std::exception_ptr& error) {
    tell(error_of<std::exception>([&] { std::rethrow_exception(error); }));
  };
  const auto done = [&](const std::string& where, const std::exception_ptr& error) {
    error ? on_error(error) : tell(where);
  };
  const auto answered = [&](const std::string& text) {
    for (int i = 0; i < 20'000; ++i, std::this_thread::sleep_for(1ms)) {
      const std::lock_guard lock(mutex);
      for (const std::string& answer : answers)
        if (answer.find(text) != std::string::npos) return true;
    }
    return false;
  };
  Session session;
  session.save_now({}, {}, done);
  CHECK(answered("nothing was saved: no training was started"));
  session.snapshot([&](const ModelSnapshot&) { tell("weights"); }, on_error);
  CHECK(answered("there are no weights: no training was started"));
  session.start(ranks(2), body({}));
  session.save_now(directory / "state", {}, done);
  CHECK(answered(directory / "state"));
  session.save_now("/dev/null/state", {}, done);
  CHECK(answered("/dev/null"));
  session.snapshot([&](const ModelSnapshot&) { tell("weights"); }, on_error);
  CHECK(answered("weights"));
  session.cancel();
  session.wait();
  session.save_now({}, {}, done);
  CHECK(answered("nothing was saved: the training has ended"));
  session.snapshot([&](const ModelSnapshot&) { tell("more weights"); }, on_error);
  CHECK(answered("there are no weights: the training has not ended well"));
  const std::lock_guard lock(mutex);
  CHECK(answers.size() == 7);
}

TEST_CASE("a body without loaders has steps and no epochs") {
  Log log;
  SessionOptions options = log.options();
  options.step_interval = 0ms;
  Session session(options);
  session.start(ranks(2), [](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), 0.05);
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    for (int i = 0; i < 5; ++i) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(at::ones({2, 4})).sum());
      optimizer.step();
      optimizer.zero_grad();
    }
  });
  session.wait();
  REQUIRE(log.has(SessionEvent::Kind::ended));
  CHECK(log.of(SessionEvent::Kind::epoch).empty());
  CHECK(count_of(log.of(SessionEvent::Kind::step)) == 5);
}

TEST_CASE("a slow callback slows nothing down: it gets the last of many events, with the number of those left out") {
  std::atomic<int> calls = 0;
  std::atomic<std::int64_t> left_out = 0;
  std::promise<void> go_on;
  const auto waits = go_on.get_future().share();
  Session session({.on_event =
                       [&](const SessionEvent& event) {
                         if (event.kind != SessionEvent::Kind::step) return;
                         calls += 1;
                         left_out += event.left_out;
                         waits.wait();
                       },
                   .step_interval = 0ms});
  session.start(ranks(2), body({}));
  wait_for_step(session, 200);  // while the first call has not returned
  CHECK(calls <= 1);
  go_on.set_value();
  while (left_out == 0) std::this_thread::sleep_for(1ms);
  session.cancel();
  session.wait();
}

TEST_CASE("callbacks come on the host's executor, in order, and none after the session is gone") {
  std::mutex mutex;
  std::deque<std::function<void()>> calls;
  std::vector<SessionEvent::Kind> kinds;
  const auto turn = [&] {
    std::function<void()> call;
    {
      const std::lock_guard lock(mutex);
      if (calls.empty()) return false;
      call = std::move(calls.front());
      calls.pop_front();
    }
    call();
    return true;
  };
  {
    Session session({.executor =
                         [&](std::function<void()> call) {
                           const std::lock_guard lock(mutex);
                           calls.push_back(std::move(call));
                         },
                     .on_event = [&](const SessionEvent& event) { kinds.push_back(event.kind); }});
    session.start(ranks(2), body({.epochs = 3}));
    session.wait();
    for (int i = 0; i < 20'000 && (kinds.empty() || kinds.back() != SessionEvent::Kind::ended); ++i)
      if (!turn()) std::this_thread::sleep_for(1ms);
    REQUIRE_FALSE(kinds.empty());
    CHECK(kinds.front() == SessionEvent::Kind::started);
    CHECK(kinds.back() == SessionEvent::Kind::ended);
    session.start(ranks(1), body({.epochs = 1}));
    session.wait();
  }
  const std::size_t before = kinds.size();
  while (turn()) continue;
  CHECK(kinds.size() == before);
}

TEST_CASE("an executor that fails ends the session, and the next training's callbacks come again") {
  std::atomic<int> calls = 0;
  Session session({.executor =
                       [&](const std::function<void()>& call) {
                         if (++calls == 3) throw std::runtime_error("the window is closed");
                         call();
                       },
                   .on_event = [](const SessionEvent&) {}});
  session.start(ranks(2), body({}));
  CHECK_THROWS_WITH(session.wait(), "the window is closed");
  const int before = calls;
  session.start(ranks(2), body({.epochs = 3}));
  session.wait();
  for (int i = 0; i < 20'000 && calls == before; ++i) std::this_thread::sleep_for(1ms);
  CHECK(calls > before);
}

TEST_CASE("a callback may do anything with its session, and destroy it") {
  std::unique_ptr<Session> session;
  std::promise<void> gone;
  std::atomic<bool> first = true;
  session = std::make_unique<Session>(SessionOptions{.on_event = [&](const SessionEvent& event) {
    if (event.kind == SessionEvent::Kind::step && first.exchange(false)) {
      session->pause();
      session->resume();
      session->request_stop();
      session->wait();
      return;
    }
    if (event.kind != SessionEvent::Kind::ended) return;
    session.reset();
    gone.set_value();
  }});
  session->start(ranks(2), body({}));
  gone.get_future().wait();
  CHECK(session == nullptr);
}
