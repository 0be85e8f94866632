// Training that a host starts, and asks to pause, stop, save and show its weights.
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <set>
#include <thread>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "runtime/session_training.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "support/threads.h"
#include "tandem/runtime/session.h"

using namespace tandem;
using namespace tandem::test;
namespace fs = std::filesystem;

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

// And those of the process.
at::Tensor settings_of_this_thread() {
  const at::Context& context = at::globalContext();
  const at::Tensor denormal = at::full({64}, 1e-40) * 1;
  return at::tensor(std::vector<std::int64_t>{
      at::get_num_threads(), at::GradMode::is_enabled(), std::fegetround(),
      denormal.count_nonzero().item<std::int64_t>(), static_cast<std::int64_t>(at::get_default_dtype_as_scalartype()),
      context.allowTF32CuBLAS(), context.benchmarkCuDNN(), context.deterministicAlgorithms()});
}

TEST_CASE("other threads that use LibTorch during a session get the bits that they get without one") {
  const auto compute = [] {
    at::manual_seed(7);
    std::vector<at::Tensor> results;
    for (int i = 0; i < 50; ++i) {
      at::Tensor a = at::rand({64, 64}).requires_grad_();
      at::Tensor b = at::dropout(a.matmul(at::randn({64, 64})), 0.3, true).sin().sum();
      b.backward();
      results.push_back(a.grad());
    }
    results.push_back(settings_of_this_thread());
    return results;
  };
  const auto alone = compute();
  Session session;
  session.start(ranks(2), body({}));
  wait_for_step(session, 1);
  std::vector<std::vector<at::Tensor>> during(2);
  during[0] = compute();
  std::thread other([&] { during[1] = compute(); });  // the default generator is one for all threads but ranks
  other.join();
  session.cancel();
  session.wait();
  during.push_back(compute());
  for (const auto& results : during)
    for (std::size_t i = 0; i < alone.size(); ++i) CHECK(at::equal(results[i], alone[i]));
}

TEST_CASE("progress tells epoch, step, loss and time left") {
  Session session;
  bool told = false, beyond = false;
  session.start(ranks(2), [&](Accelerator& accelerator) {
    accelerator.set_total_steps(60);
    body({.epochs = 10, .in_step = [] { std::this_thread::sleep_for(3ms); }})(accelerator);
  });
  while (session.progress().state != SessionState::ended) {
    const Progress progress = session.progress();
    told = told || (progress.step > 0 && progress.steps_per_second > 0 && progress.seconds_left >= 0 &&
                    progress.epoch_steps == 6 && progress.total_steps == 60 && std::isfinite(progress.loss));
    beyond = beyond || progress.epoch_step > 6 || progress.step > 60;
  }
  session.wait();
  CHECK_FALSE(beyond);
  CHECK(told);
  CHECK(session.progress().step == 60);
  CHECK(session.progress().epoch == 9);
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
    for (;;) auto step = accelerator.accumulate();
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

std::size_t resident_bytes() {
  std::size_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * static_cast<std::size_t>(::getpagesize());
}

TEST_CASE("sessions run side by side with results of their own, and a thousand in turn leave nothing behind") {
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
