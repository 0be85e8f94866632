// Training that a host pauses and stops.
#include <atomic>
#include <future>
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

TEST_CASE("a paused session stands still until it is resumed, stopped or cancelled") {
  for (const int count : {1, 2, 3}) {
    Log log;
    Session session(log.options());
    std::atomic<int> steps = 0;
    session.start(ranks(count), body({.steps = &steps}));
    wait_for_step(session, 1);
    session.pause({.release_memory = true});
    REQUIRE(reaches(session, SessionState::paused));
    const int at = steps;
    std::this_thread::sleep_for(50ms);
    CHECK(steps == at);
    session.pause();
    CHECK(session.status().state == SessionState::paused);
    session.resume();
    wait_for_step(session, at + 2);
    session.pause();
    REQUIRE(reaches(session, SessionState::paused));
    if (count == 2)
      session.cancel();
    else
      session.request_stop();
    session.wait();
    CHECK(session.status().state == (count == 2 ? SessionState::cancelled : SessionState::ended));
    CHECK(log.has(count == 2 ? SessionEvent::Kind::cancelled : SessionEvent::Kind::ended));
    CHECK(log.of(SessionEvent::Kind::paused).size() == 2);
    CHECK(log.of(SessionEvent::Kind::resumed).size() == 1);
  }
}

TEST_CASE("who hears of a pause sees the progress of the place where ranks stand") {
  std::atomic<int> steps = 0;
  Session session;
  session.start(ranks(4), body({.steps = &steps}));
  for (int i = 0; i < 50; ++i) {
    wait_for_step(session, steps + 1);
    session.pause();
    REQUIRE(reaches(session, SessionState::paused));
    REQUIRE(session.progress().step == steps);
    session.resume();
  }
  session.cancel();
  session.wait();
}

TEST_CASE("request_stop closes the window, lets the body end and delivers the model") {
  std::vector<at::Tensor> weights;
  std::atomic<int> evaluations = 0, evaluated = 0;
  const auto evaluate = [&](Accelerator& accelerator, torch::nn::Linear&) {
    auto loader = accelerator.prepare(data::DataLoader(Points(10), {.batch_size = 1}));
    for (const auto& batch : loader) evaluated += batch.data.size(0) == 1 && accelerator.is_main();
    evaluations += accelerator.is_main();
  };
  LaunchConfig config = ranks(2);
  config.gradient_accumulation_steps = 3;
  Session session;
  session.start(config, body({.points = Points(240), .in_epoch = evaluate, .weights = &weights}));
  wait_for_step(session, 3);
  session.request_stop();
  session.request_stop();
  session.wait();
  CHECK(session.status().state == SessionState::ended);
  CHECK(evaluations >= 1);
  CHECK(evaluated == 5 * evaluations);  // whole evaluations, also after the stop
  const ModelSnapshot snapshot = session.snapshot().get();
  REQUIRE(snapshot.models.size() == 1);
  CHECK(snapshot.step == session.progress().step);
  torch::nn::Linear mine(4, 3);
  snapshot.load_into(*mine);
  CHECK(at::equal(mine->weight, weights.at(0)));
  CHECK(at::equal(mine->bias, weights.at(1)));
  torch::nn::Linear other(4, 2);
  CHECK_THROWS_WITH(snapshot.load_into(*other), ContainsSubstring("'weight' has sizes [2, 4] in the module"));
  CHECK_THROWS_WITH(snapshot.load_into(*mine, 1), ContainsSubstring("no model 1"));
}

TEST_CASE("a body that saves its state after a stop goes on from there to the same bits") {
  TempDir directory;
  LaunchConfig config = ranks(2);
  config.gradient_accumulation_steps = 3;
  const auto part = [&](const std::string& from, bool saves, std::vector<at::Tensor>& weights) {
    return [&weights, from, saves, to = directory / "state"](Accelerator& accelerator) {
      torch::nn::Linear net(4, 3);
      torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
      data::DataLoader data(Points(120, 100us), {.batch_size = 2, .shuffle = true});
      auto [model, optimizer, loader] = accelerator.prepare(net, sgd, data);
      if (!from.empty()) accelerator.load_state(from);
      while (loader.epoch() < 4 && !accelerator.stop_requested())
        for (auto& [points, classes] : loader) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
          optimizer.step();
          optimizer.zero_grad();
        }
      if (saves) accelerator.save_state(to);
      if (accelerator.is_main())
        for (const auto& parameter : model.parameters()) weights.push_back(parameter.detach().clone());
    };
  };
  std::vector<at::Tensor> whole;
  launch(config, part({}, false, whole));
  for (int round = 0; round < 5; ++round) {
    std::vector<at::Tensor> first, rest;
    Session session;
    session.start(config, part({}, true, first));
    wait_for_step(session, 1 + round);
    session.request_stop();
    session.wait();
    CHECK(session.progress().step < 40);
    session.start(config, part(directory / "state", false, rest));
    session.wait();
    REQUIRE(rest.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) CHECK(at::equal(rest[i], whole[i]));
  }
}

TEST_CASE("an evaluation within the loop that trains is whole also after a stop") {
  std::atomic<int> evaluations = 0, evaluated = 0;
  Session session;
  session.start(ranks(2), [&](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), 0.05);
    data::DataLoader data(Points(), {.batch_size = 2}), held_out(Points(8), {.batch_size = 2});
    auto [model, optimizer, loader, evaluation] = accelerator.prepare(net, sgd, data, held_out);
    while (!accelerator.stop_requested())
      for (auto& [points, classes] : loader) {
        for (const auto& batch : evaluation) evaluated += batch.data.size(0) == 2;
        evaluations += 1;
        accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));  // without accumulate
        optimizer.step();
        optimizer.zero_grad();
      }
  });
  wait_for_step(session, 2);
  session.request_stop();
  session.wait();
  CHECK(session.status().state == SessionState::ended);
  CHECK(evaluated == 2 * evaluations);
}

TEST_CASE("ranks with different numbers of batches are paused, stopped and shown too") {
  LaunchConfig config = ranks(2);
  config.data_loader.even_batches = false;
  Session session;
  session.start(config, [](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), 0.05);
    data::DataLoader data(Points(12), {.batch_size = 4});  // two steps an epoch on rank 0, one on rank 1
    auto [model, optimizer, loader] = accelerator.prepare(net, sgd, data);
    while (!accelerator.stop_requested())
      accelerator.join_uneven_inputs([&, &model = model, &optimizer = optimizer, &loader = loader] {
        for (auto& [points, classes] : loader) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
          optimizer.step();
          optimizer.zero_grad();
        }
      });
  });
  wait_for_step(session, 1);
  for (int i = 0; i < 20; ++i) {
    session.pause();
    REQUIRE(reaches(session, SessionState::paused));
    CHECK(session.snapshot().get().models.size() == 1);
    session.resume();
  }
  session.request_stop();
  session.wait();
  CHECK(session.status().state == SessionState::ended);
}

TEST_CASE("ranks with different numbers of micro-batches in a window are paused, saved and stopped") {
  TempDir directory;
  LaunchConfig config = ranks(2);
  config.gradient_accumulation_steps = 1000;
  Session session;
  session.start(config, [](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), 1e-4);
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    while (!accelerator.stop_requested()) {
      for (int more = accelerator.is_main() ? 2 : 0; more > 0; --more) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(model(at::ones({2, 4})).sum(), 2);
      }
      auto window = accelerator.accumulate_and_close(model);
      accelerator.backward(model(at::ones({2, 4})).sum(), 2);
      optimizer.step();
      optimizer.zero_grad();
    }
  });
  wait_for_step(session, 2);
  for (int i = 0; i < 3; ++i) {
    session.pause();
    CHECK(reaches(session, SessionState::paused));
    session.resume();
  }
  auto saved = session.save_now(directory / "state");
  CHECK(saved.wait_for(20s) == std::future_status::ready);
  session.request_stop();
  CHECK(session.wait_for(20s));
  session.cancel();
  session.wait();
  CHECK(session.status().state == SessionState::ended);
}

TEST_CASE("ranks without a last batch do not go on by themselves after a stop") {
  for (int run = 0; run < 20; ++run) {
    LaunchConfig config = ranks(2);
    config.data_loader.even_batches = false;
    Session session;
    session.start(config, [](Accelerator& accelerator) {
      torch::nn::Linear net(4, 3);
      torch::optim::SGD sgd(net->parameters(), 0.05);
      data::DataLoader data(Points(9), {.batch_size = 4});  // two steps for rank 0, one for rank 1
      auto [model, optimizer, loader] = accelerator.prepare(net, sgd, data);
      const auto step = [&, &optimizer = optimizer](const at::Tensor& loss) {
        accelerator.backward(loss);
        optimizer.step();
        optimizer.zero_grad();
      };
      while (!accelerator.stop_requested()) {
        for (auto& [points, classes] : loader) {
          auto window = accelerator.accumulate_and_close(model);
          step(torch::nn::functional::cross_entropy(model(points), classes));
        }
        for (auto i = loader.steps_without_batch(); i > 0; --i) {
          auto window = accelerator.accumulate_and_close(model);
          step(model(at::zeros({0, 4})).sum());
        }
      }
    });
    wait_for_step(session, 2);
    std::this_thread::sleep_for(std::chrono::microseconds(300 * run));
    session.request_stop();
    session.wait();
    CHECK(session.status().state == SessionState::ended);
  }
}

TEST_CASE("a loop that was left with a batch in hand is no obstacle to a stop") {
  Session session;
  std::atomic<int> looks = 0;
  session.start(ranks(2), [&](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), 0.05);
    data::DataLoader data(Points(), {.batch_size = 2}), held_out(Points(8), {.batch_size = 2});
    auto [model, optimizer, loader, evaluation] = accelerator.prepare(net, sgd, data, held_out);
    int step = 0;
    for (auto& [points, classes] : loader) {
      if (step++ == 2) break;
      auto window = accelerator.accumulate(model);
      accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
      optimizer.step();
      optimizer.zero_grad();
    }
    while (!accelerator.stop_requested())
      for (auto& batch : evaluation) looks += batch.data.size(0) > 0;
  });
  while (looks < 20) std::this_thread::sleep_for(1ms);
  session.request_stop();
  CHECK(session.wait_for(20s));
  session.cancel();
  session.wait();
  CHECK(session.status().state == SessionState::ended);
}

TEST_CASE("a stop in a loop without its first steps keeps the place") {
  Session session;
  std::atomic<std::int64_t> epoch = -1, step = -1, rest = -1;
  session.start(ranks(2), [&](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), 0.05);
    auto [model, optimizer, loader] = accelerator.prepare(net, sgd, data::DataLoader(Points(4000), {.batch_size = 2}));
    for (auto& [points, classes] : loader.skip_first_batches(100)) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
      optimizer.step();
      optimizer.zero_grad();
    }
    if (!accelerator.is_main()) return;
    epoch = loader.state_dict().epoch;
    step = loader.state_dict().step;
  });
  wait_for_step(session, 3);
  session.request_stop();
  session.wait();
  CHECK(epoch == 0);
  CHECK(step == 100 + session.progress().step);
}
