// What a host gets of the weights while a session trains: saves and snapshots.
#include <atomic>
#include <cmath>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "session/session_training.h"
#include "support/temp_dir.h"
#include "tandem/session/session.h"

using namespace tandem;
using namespace tandem::test;

TEST_CASE("what is paused in the middle of a window is saved once it is resumed and the window is closed") {
  for (const int count : {1, 2}) {
    TempDir directory;
    LaunchConfig config = ranks(count);
    config.gradient_accumulation_steps = 3;
    Session session;
    session.start(config, [&session](Accelerator& accelerator) {
      torch::nn::Linear net(4, 3);
      torch::optim::SGD sgd(net->parameters(), 0.05);
      data::DataLoader data(Points(), {.batch_size = 2});
      auto [model, optimizer, loader] = accelerator.prepare(net, sgd, data);
      int micro_batches = 0;
      while (!accelerator.stop_requested())
        for (auto& [points, classes] : loader) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
          optimizer.step();
          optimizer.zero_grad();
          // In the second window's first of three; nobody is further than that.
          if (++micro_batches == 4 && accelerator.is_main()) session.pause();
          accelerator.wait_for_everyone();
        }
    });
    REQUIRE(reaches(session, SessionState::paused));
    CHECK(session.progress().step == 1);
    auto saved = session.save_now(directory / "state");
    CHECK(saved.wait_for(50ms) == std::future_status::timeout);
    CHECK(session.status().state == SessionState::paused);
    session.resume();
    CHECK(saved.get() == directory / "state");
    session.request_stop();
    session.wait();
    CHECK(session.status().state == SessionState::ended);
  }
}

TEST_CASE("a snapshot has the weights of all ranks' same step, and evaluate_with uses it on the host's thread") {
  for (const int count : {1, 2, 3}) {
    Session session;
    session.start(ranks(count), body({}));
    wait_for_step(session, 1);
    const auto thread = std::this_thread::get_id();
    std::int64_t last = -1;
    for (int i = 0; i < 5; ++i) {
      torch::nn::Linear preview(4, 3);
      const std::int64_t step = session.evaluate_with([&](const ModelSnapshot& snapshot) {
        CHECK(std::this_thread::get_id() == thread);
        snapshot.load_into(*preview);
        return snapshot.step;
      });
      CHECK(step >= last);
      last = step;
      CHECK(preview->weight.isfinite().all().item<bool>());
    }
    // While paused, twice the same.
    session.pause();
    REQUIRE(reaches(session, SessionState::paused));
    const auto first = session.snapshot().get(), second = session.snapshot().get();
    CHECK(first.step == second.step);
    CHECK(at::equal(first.models[0][0].second, second.models[0][0].second));
    CHECK(first.models[0][0].second.data_ptr() != second.models[0][0].second.data_ptr());
    std::promise<std::int64_t> called;
    session.snapshot([&](const ModelSnapshot& snapshot) { called.set_value(snapshot.step); });
    CHECK(called.get_future().get() == first.step);
    session.cancel();
    session.wait();
    CHECK_THROWS_WITH(session.snapshot().get(), ContainsSubstring("has not ended well"));
  }
}

TEST_CASE("save_now saves between two steps, and a training goes on from there to the same bits") {
  TempDir directory;
  std::vector<at::Tensor> whole, rest;
  Log log;
  LaunchConfig config = ranks(2);
  config.gradient_accumulation_steps = 2;
  {
    Session session(log.options());
    session.start(config, body({.epochs = 200, .weights = &whole}));
    wait_for_step(session, 3);
    CHECK(session.save_now(directory / "state").get() == directory / "state");
    std::ofstream(directory / "file") << "no directory";
    CHECK_THROWS_WITH(session.save_now(directory / "file/state").get(), ContainsSubstring("/file: cannot be made"));
    CHECK_THROWS_AS(session.save_now().get(), ConfigError);
    session.wait();
    CHECK_THROWS_WITH(session.save_now(directory / "late").get(), ContainsSubstring("has ended"));
    CHECK(log.has(SessionEvent::Kind::ended));
    CHECK(log.of(SessionEvent::Kind::saved).size() == 1);
    CHECK(log.of(SessionEvent::Kind::save_failed).size() == 2);
  }
  Session session;
  session.start(config, [&](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
    data::DataLoader data(Points(), {.batch_size = 2, .shuffle = true});
    auto [model, optimizer, loader] = accelerator.prepare(net, sgd, data);
    accelerator.load_state(directory / "state");
    while (loader.epoch() < 200)
      for (auto& [points, classes] : loader) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
        optimizer.step();
        optimizer.zero_grad();
      }
    if (accelerator.is_main())
      for (const auto& parameter : model.parameters()) rest.push_back(parameter.detach().clone());
  });
  session.wait();
  CHECK(session.progress().step == 200 * 3);
  REQUIRE(rest.size() == whole.size());
  for (std::size_t i = 0; i < rest.size(); ++i) CHECK(at::equal(rest[i], whole[i]));
}

TEST_CASE("after a try that ran out of memory on one rank the others are asked at the same place again") {
  TempDir directory;
  Session session;
  session.start(ranks(2), [](Accelerator& accelerator) {
    accelerator.find_executable_batch_size(4, [&](std::int64_t size) {
      torch::nn::Linear net(4, 3);
      torch::optim::SGD sgd(net->parameters(), 0.05);
      data::DataLoader data(Points(), {.batch_size = size}), held_out(Points(8), {.batch_size = 2});
      auto [model, optimizer, loader, evaluation] = accelerator.prepare(net, sgd, data, held_out);
      if (size == 4 && accelerator.rank() == 1) throw std::bad_alloc();
      if (size == 4)
        for (int i = 0; i < 5; ++i) auto window = accelerator.accumulate_and_close(model);
      while (size < 4 && !accelerator.stop_requested())
        for (auto& [points, classes] : loader) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
          optimizer.step();
          optimizer.zero_grad();
        }
    });
  });
  wait_for_step(session, 8);
  CHECK(session.save_now(directory / "state").get() == directory / "state");
  session.request_stop();
  session.wait();
  CHECK(session.status().state == SessionState::ended);
}

TEST_CASE("a save in the background is told of when it is written, and fails alone") {
  TempDir directory;
  std::ofstream(directory / "file") << "no directory";
  Log log;
  Session session(log.options());
  std::atomic<bool> ends = false;
  session.start(ranks(2), [&](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), 0.05);
    auto [model, optimizer, loader] = accelerator.prepare(net, sgd, data::DataLoader(Points(), {.batch_size = 2}));
    for (bool last = false; !last;)
      for (auto& [points, classes] : loader) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
        optimizer.step();
        optimizer.zero_grad();
        last = accelerator.broadcast_object(ends.load());
      }
  });
  wait_for_step(session, 1);
  CHECK(session.save_now(directory / "state", {.background = true}).get() == directory / "state");
  CHECK_NOTHROW(io::CheckpointReader(directory / "state").verify());
  auto failed = session.save_now(directory / "file/state", {.background = true});
  CHECK_THROWS_WITH(failed.get(), ContainsSubstring("/file: cannot be made"));
  auto after = session.save_now(directory / "after");
  CHECK(after.get() == directory / "after");
  auto last = session.save_now(directory / "file/last", {.background = true});
  ends = true;
  session.wait();
  CHECK(session.status().state == SessionState::ended);
  CHECK_THROWS_AS(last.get(), Error);
  CHECK(session.snapshot().get().models.size() == 1);
  CHECK(log.has(SessionEvent::Kind::ended));
  CHECK(log.of(SessionEvent::Kind::saved).size() == 2);
  CHECK(log.of(SessionEvent::Kind::save_failed).size() == 2);
}

TEST_CASE("what is paused while it waits for data is saved at once") {
  TempDir directory;
  Session session;
  session.start(ranks(2), body({.points = Points(64, 500us)}));
  wait_for_step(session, 2);
  for (int run = 0; run < 20; ++run) {
    std::this_thread::sleep_for(std::chrono::microseconds(333 * run));
    session.pause();
    REQUIRE(reaches(session, SessionState::paused));
    auto saved = session.save_now(directory / std::to_string(run));
    CHECK(saved.wait_for(20s) == std::future_status::ready);
    session.resume();
  }
  session.request_stop();
  session.wait();
}

TEST_CASE("snapshots of what a training ended with are each a copy of its own") {
  Session session;
  session.start(ranks(1), body({.epochs = 1}));
  session.wait();
  ModelSnapshot first = session.snapshot().get();
  const at::Tensor before = first.models[0][0].second.clone();
  first.models[0][0].second.zero_();
  CHECK(at::equal(session.snapshot().get().models[0][0].second, before));
}
