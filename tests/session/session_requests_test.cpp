// What a host may ask of a session at any moment.
#include <atomic>
#include <future>
#include <random>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "session/session_training.h"
#include "support/ranks.h"
#include "support/temp_dir.h"
#include "tandem/session/session.h"

using namespace tandem;
using namespace tandem::test;

// Pause, stop and cancel while ranks are in every part of a training.
TEST_CASE("a session is paused, stopped and cancelled whatever it is doing") {
  enum class Part { launch, load, forward, backward, reduce, step, evaluate, save, paused, start, end };
  enum class Request { pause, stop, cancel };
  for (const Part part : {Part::launch, Part::load, Part::forward, Part::backward, Part::reduce, Part::step,
                          Part::evaluate, Part::save, Part::paused, Part::start, Part::end})
    for (const Request request : {Request::pause, Request::stop, Request::cancel}) {
      TempDir directory;
      std::promise<void> there;
      std::atomic<bool> told = false;
      const auto reached = [&](Part now, const Accelerator& accelerator) {
        if (now != part || !accelerator.is_main()) return;
        if (!told.exchange(true)) there.set_value();
        std::this_thread::sleep_for(2ms);  // the request comes while it goes on
      };
      Session session;
      session.start(ranks(2), [&](Accelerator& accelerator) {
        reached(Part::start, accelerator);
        torch::nn::Linear net(4, 3);
        torch::optim::SGD sgd(net->parameters(), 0.05);
        data::DataLoader data(Points(24, part == Part::load ? 500us : 0us), {.batch_size = 2});
        data::DataLoader held_out(Points(8), {.batch_size = 2});
        auto [model, optimizer, loader, evaluation] = accelerator.prepare(net, sgd, data, held_out);
        for (int epoch = 0; epoch < (part == Part::end ? 1 : 1'000'000) && !accelerator.stop_requested(); ++epoch) {
          for (auto& [points, classes] : loader) {
            reached(Part::load, accelerator);
            auto window = accelerator.accumulate(model);
            reached(Part::forward, accelerator);
            auto loss = torch::nn::functional::cross_entropy(model(points), classes);
            reached(Part::backward, accelerator);
            accelerator.backward(loss);
            reached(Part::reduce, accelerator);
            accelerator.reduce(loss.detach());
            reached(Part::step, accelerator);
            optimizer.step();
            optimizer.zero_grad();
          }
          for (const auto& batch : evaluation) {
            reached(Part::evaluate, accelerator);
            accelerator.gather(batch.target);
          }
          if (part == Part::save && epoch < 20) {
            reached(Part::save, accelerator);
            accelerator.save_state(directory / "state");
          }
        }
        reached(Part::end, accelerator);
      });
      if (part == Part::paused) {
        session.pause();
        REQUIRE(reaches(session, SessionState::paused));
      } else if (part != Part::launch) {
        there.get_future().wait();
      }
      CAPTURE(static_cast<int>(part), static_cast<int>(request));
      const auto waits = [](SessionState state) {
        return state == SessionState::starting || state == SessionState::pausing;
      };
      if (request == Request::pause) {
        session.pause();
        for (int i = 0; i < 20'000 && waits(session.status().state); ++i) std::this_thread::sleep_for(1ms);
        const SessionState state = session.status().state;
        CHECK((state == SessionState::paused || (part == Part::end && state == SessionState::ended)));
        session.resume();
        session.request_stop();
      } else if (request == Request::stop) {
        session.request_stop();
      } else {
        session.cancel();
      }
      session.wait();
      const SessionState state = session.status().state;
      if (request == Request::cancel)
        CHECK((state == SessionState::cancelled || (part == Part::end && state == SessionState::ended)));
      else
        CHECK(state == SessionState::ended);
    }
}

// Whether the events of trainings in turn make sense.
class Automaton {
 public:
  using Kind = SessionEvent::Kind;

  void hear(const SessionEvent& event) {
    const bool ends = event.kind == Kind::ended || event.kind == Kind::cancelled || event.kind == Kind::failed;
    contradictions_ += !makes_sense(event) || event.kind == Kind::failed;  // nothing here fails
    started_ = started_ || event.kind == Kind::started;
    paused_ = event.kind == Kind::paused || (paused_ && event.kind != Kind::resumed);
    step_ = event.progress.step;
    if (!ends) return;
    started_ = paused_ = false;
    step_ = 0;
    ends_ += 1;  // the next event is of another training
  }

  int ends() const { return ends_; }
  int contradictions() const { return contradictions_; }

 private:
  bool makes_sense(const SessionEvent& event) const {
    if (event.progress.step < step_) return false;
    switch (event.kind) {
      case Kind::started: return !started_;
      case Kind::resumed: return started_ && paused_;
      case Kind::cancelled:
      case Kind::failed:
      case Kind::save_failed: return true;  // also before ranks begin
      default: return started_;
    }
  }

  bool started_ = false, paused_ = false;  // of the training that goes on
  std::int64_t step_ = 0;
  std::atomic<int> ends_ = 0, contradictions_ = 0;
};

// Asks a session for anything.
class Host {
 public:
  Host(Session& session, unsigned seed) : session_(session), random_(seed) {}

  void ask() {
    switch (below(15)) {
      case 0:
      case 1: return start();
      case 2: return session_.pause({.release_memory = below(2) == 0});
      case 3:
      case 4:
      case 5: return session_.resume();
      case 6: return session_.request_stop();
      case 7: return cancel();
      case 8: return static_cast<void>(session_.snapshot());
      case 9: return static_cast<void>(session_.save_now("/dev/null/state"));
      case 10: return wait();
      case 11: return check(session_.progress().step >= 0);
      case 12: return check(session_.status().error.empty());
      case 13: return session_.snapshot([](const ModelSnapshot& snapshot) { snapshot.models.at(0); });
      case 14: return evaluate();
    }
  }

  unsigned below(unsigned end) { return static_cast<unsigned>(random_()) % end; }
  int starts() const { return starts_; }
  int contradictions() const { return contradictions_; }

 private:
  void check(bool holds) { contradictions_ += !holds; }

  void start() {
    LaunchConfig config = ranks(1 + static_cast<int>(below(3)));
    std::stop_source source;
    if (below(2) == 0) config.cancel = source.get_token();
    try {
      session_.start(config, body({.epochs = 30}));
      starts_ += 1;
      source_ = source;
    } catch (const Error& error) {
      check(std::string(error.what()).find("cannot start") != std::string::npos);
    }
  }

  void cancel() {
    if (const unsigned choice = below(8); choice == 0)
      session_.cancel();
    else if (choice == 1)
      source_.request_stop();  // of the last that this host has started
  }

  void wait() {
    try {
      session_.wait_for(std::chrono::microseconds(below(2'000)));
    } catch (const Error&) {
      check(false);
    }
  }

  void evaluate() {
    try {
      check(session_.evaluate_with([](const ModelSnapshot& snapshot) { return snapshot.models.size() == 1; }));
    } catch (const Error&) {
      // No training was started, or it ended before it had a model.
    }
  }

  Session& session_;
  std::mt19937 random_;
  std::stop_source source_;
  int starts_ = 0, contradictions_ = 0;
};

TEST_CASE("requests of three threads in any order leave a session that ends as it was asked to") {
  Automaton automaton;
  Session session({.on_event = [&](const SessionEvent& event) { automaton.hear(event); }});
  std::atomic<bool> over = false;
  std::atomic<int> starts = 0, contradictions = 0;
  const auto run = [&](unsigned seed) {
    Host host(session, seed);
    while (!over) {
      host.ask();
      std::this_thread::sleep_for(std::chrono::microseconds(host.below(300)));
    }
    starts += host.starts();
    contradictions += host.contradictions();
  };
  std::vector<std::thread> hosts;
  for (unsigned seed = 0; seed < 3; ++seed) hosts.emplace_back(run, seed);
  std::this_thread::sleep_for(20s);
  over = true;
  for (auto& thread : hosts) thread.join();
  session.cancel();
  session.wait();
  for (int i = 0; i < 20'000 && automaton.ends() < starts; ++i) std::this_thread::sleep_for(1ms);
  CHECK(starts > 20);
  CHECK(automaton.ends() == starts);
  CHECK(contradictions == 0);
  CHECK(automaton.contradictions() == 0);
}
