// How launches end when something goes wrong: always, soon, and with the first error.
#include <fstream>
#include <thread>

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"
#include "support/threads.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct MyError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

double resident_mb() {
  std::ifstream file("/proc/self/statm");
  double pages = 0;
  file >> pages >> pages;
  return pages * 4096 / 1e6;
}

struct NoDataset : torch::data::datasets::Dataset<NoDataset, at::Tensor> {
  int rank, bad_rank;
  NoDataset(int rank, int bad_rank) : rank(rank), bad_rank(bad_rank) {}
  at::Tensor get(std::size_t index) override {
    if (rank == bad_rank && index >= 8) throw MyError("bad sample");
    return at::ones({2});
  }
  std::optional<std::size_t> size() const override { return 64; }
};

}  // namespace

TEST_CASE("a rank that throws ends ranks waiting in an all-reduce") {
  const int bad = GENERATE(0, 1, 2);
  const auto error = run_ranks_expecting_error(3, [&](Accelerator& accelerator) {
    if (accelerator.rank() == bad) throw MyError("disk on fire");
    accelerator.reduce(torch::ones({4}));
  });
  CHECK(error.rank() == bad);
  CHECK_THAT(error.what(), ContainsSubstring("disk on fire"));
  CHECK_THROWS_AS(error.rethrow_cause(), MyError);
}

TEST_CASE("a rank that throws ends ranks waiting in a barrier, in any phase") {
  const int bad = GENERATE(0, 1, 2);
  const int phase = GENERATE(0, 1, 17);
  const auto error = run_ranks_expecting_error(3, [&](Accelerator& accelerator) {
    for (int i = 0;; ++i) {
      if (accelerator.rank() == bad && i == phase) throw MyError("disk on fire");
      accelerator.wait_for_everyone();
    }
  });
  CHECK(error.rank() == bad);
  CHECK_THROWS_AS(error.rethrow_cause(), MyError);
}

TEST_CASE("a rank that throws in forward, backward or step ends the others in training") {
  const int bad = GENERATE(0, 1, 2);
  const std::string where = GENERATE("forward", "backward", "step");
  const auto error = run_ranks_expecting_error(3, [&](Accelerator& accelerator) {
    torch::nn::Linear net(4, 1);
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    for (int i = 0;; ++i) {
      const bool now = accelerator.rank() == bad && i == 5;
      if (now && where == "forward") throw MyError("in forward");
      auto loss = model(torch::ones({2, 4})).sum();
      if (now && where == "backward") loss.register_hook([](const at::Tensor&) { throw MyError("in backward"); });
      accelerator.backward(loss);
      if (now && where == "step") throw MyError("in step");
      optimizer.step();
      optimizer.zero_grad();
    }
  });
  CHECK(error.rank() == bad);
  CHECK_THAT(error.what(), ContainsSubstring("in " + where));
}

TEST_CASE("a dataset that throws on one rank ends the others, in shard and in dispatch mode") {
  const int bad = GENERATE(0, 1, 2);
  const bool dispatch = GENERATE(false, true);
  if (dispatch && bad != 0) return;  // only rank 0 reads then
  LaunchConfig config;
  config.data_loader.dispatch_batches = dispatch;
  struct TakesItsTime {
    ~TakesItsTime() { std::this_thread::sleep_for(std::chrono::milliseconds(50)); }
  };
  const auto error = run_ranks_expecting_error(3, config, [&](Accelerator& accelerator) {
    const TakesItsTime after_the_loader;  // that has gone when nobody knows of the error yet
    auto loader = accelerator.prepare(data::DataLoader(NoDataset(accelerator.rank(), bad), {.batch_size = 2}));
    for (auto& batch : loader) accelerator.reduce(batch);
  });
  CHECK(error.rank() == bad);
  CHECK_THROWS_AS(error.rethrow_cause(), MyError);
}

TEST_CASE("different collective calls are an error that names both, on every rank") {
  const int odd = GENERATE(0, 1, 2);
  const auto error = run_ranks_expecting_error(3, [&](Accelerator& accelerator) {
    if (accelerator.rank() == odd)
      accelerator.wait_for_everyone();
    else
      accelerator.reduce(torch::ones({4, 7}));
  });
  CHECK_THAT(error.what(), ContainsSubstring("barrier"));
  CHECK_THAT(error.what(), ContainsSubstring("all_reduce(sum) of Float[4, 7]"));
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
}

TEST_CASE("ranks that prepare different objects, or one more than the others, are an error that names both") {
  using Call = std::function<void(Accelerator&)>;
  const std::vector<std::pair<std::string, Call>> calls{
      {"prepare(model)", [](Accelerator& a) { a.prepare(torch::nn::Linear(2, 1)); }},
      {"prepare(optimizer)",
       [](Accelerator& a) {
         torch::optim::SGD sgd({torch::ones({1}).requires_grad_()}, 0.1);
         a.prepare(sgd);
       }},
      {"prepare(scheduler)",
       [](Accelerator& a) {
         torch::optim::SGD sgd({torch::ones({1}).requires_grad_()}, 0.1);
         optim::ExponentialLR halving(sgd, {.gamma = 0.5});
         a.prepare(halving);
       }},
      {"prepare(data loader)",
       [](Accelerator& a) {
         a.prepare(data::DataLoader(data::TensorDataset(torch::ones({4, 1}))));
       }},
      {"barrier", [](Accelerator& a) { a.wait_for_everyone(); }}};
  for (const auto& [name, call] : calls)
    for (const auto& [other_name, other] : calls) {
      if (name == other_name) continue;
      const auto error = run_ranks_expecting_error(
          2, [&, &call = call, &other = other](Accelerator& a) { a.is_main() ? call(a) : other(a); });
      CHECK_THAT(error.what(), ContainsSubstring(name + " on rank 0") || ContainsSubstring("but " + name));
      CHECK_THAT(error.what(), ContainsSubstring(other_name + " on rank 1") || ContainsSubstring("but " + other_name));
    }
}

TEST_CASE(
    "a scheduler that one rank alone prepares is an error at the others' next call, however updates are divided") {
  const auto sharding = GENERATE(Sharding::none, Sharding::automatic, Sharding::optimizer);
  const int alone = GENERATE(0, 1);
  const auto error = run_ranks_expecting_error(2, {.sharding = sharding}, [&](Accelerator& a) {
    torch::nn::Linear net(2, 1);
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto [model, optimizer] = a.prepare(net, sgd);
    optim::ExponentialLR halving(sgd, {.gamma = 0.5});
    std::optional<optim::AcceleratedScheduler> scheduler;
    if (a.rank() == alone) scheduler = a.prepare(halving);
    for (int step = 0; step < 3; ++step) {
      a.backward(model(at::ones({2, 2})).sum());
      optimizer.step();
      if (scheduler) scheduler->step();
    }
  });
  CHECK_THAT(error.what(),
             ContainsSubstring("prepare(scheduler)") && ContainsSubstring("rank 0") && ContainsSubstring("rank 1"));
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
}

TEST_CASE("tensors of different shapes or types in one call are an error") {
  const auto shapes = run_ranks_expecting_error(
      2, [](Accelerator& accelerator) { accelerator.reduce(torch::ones({accelerator.rank() + 2})); });
  CHECK_THAT(shapes.what(), ContainsSubstring("Float[2]") && ContainsSubstring("Float[3]"));
  const auto types = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    accelerator.reduce(torch::ones({2}, accelerator.is_main() ? at::kFloat : at::kDouble));
  });
  CHECK_THAT(types.what(), ContainsSubstring("Float[2]") && ContainsSubstring("Double[2]"));
}

TEST_CASE("a mismatch is found without waiting for ranks that have not come") {
  std::atomic<bool> release{false};
  const auto error = run_ranks_expecting_error(3, [&](Accelerator& accelerator) {
    if (accelerator.rank() == 2) {
      release.wait(false);  // comes only after the error
      accelerator.wait_for_everyone();
      return;
    }
    try {
      if (accelerator.rank() == 0)
        accelerator.wait_for_everyone();
      else
        accelerator.reduce(torch::ones({1}));
    } catch (...) {
      release = true;
      release.notify_all();
      throw;
    }
  });
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
}

TEST_CASE("a rank that returns early while others wait for it is an error that names it") {
  const int early = GENERATE(0, 1, 2);
  const auto error = run_ranks_expecting_error(3, [&](Accelerator& accelerator) {
    accelerator.wait_for_everyone();
    if (accelerator.rank() == early) return;
    accelerator.reduce(torch::ones({4}));
  });
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
  CHECK_THAT(error.what(), ContainsSubstring("rank " + std::to_string(early) + " returned"));
}

TEST_CASE("a rank that leaves a dispatching loader early is an error for those who stay") {
  LaunchConfig config;
  config.data_loader.dispatch_batches = true;
  const auto error = run_ranks_expecting_error(2, config, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(NoDataset(0, 9), {.batch_size = 2}));
    for (auto& batch : loader) {
      (void)batch;
      if (accelerator.is_main()) break;
    }
  });
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
}

TEST_CASE("a wait over the time limit is an error that says what each rank was doing") {
  const int late = GENERATE(0, 1, 2);
  LaunchConfig config;
  config.timeout = std::chrono::milliseconds(200);
  const auto error = run_ranks_expecting_error(3, config, [&](Accelerator& accelerator) {
    accelerator.wait_for_everyone();
    if (accelerator.rank() == late) {
      while (!accelerator.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return;
    }
    accelerator.reduce(torch::ones({4}));
  });
  CHECK(error.rank() == late);
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
  for (int rank = 0; rank < 3; ++rank) {
    const std::string line = "rank " + std::to_string(rank) + (rank == late ? ": running" : ": waiting");
    CHECK_THAT(error.what(), ContainsSubstring(line));
  }
  CHECK_THAT(error.what(), ContainsSubstring("all_reduce(sum) of Float[4]"));
}

TEST_CASE("after a failure the next launch works, hundreds of times, without new threads") {
  run_ranks(2, [](Accelerator& accelerator) { accelerator.wait_for_everyone(); });
  const auto before = threads_of_this_process();
  for (int i = 0; i < 200; ++i) {
    run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
      if (accelerator.rank() == i % 2) throw MyError("again");
      accelerator.wait_for_everyone();
    });
    const auto sums = on_ranks<float>(2, [](Accelerator& a) { return a.reduce(torch::ones({1})).item<float>(); });
    REQUIRE(sums == std::vector<float>{2, 2});
  }
  CHECK(no_more_threads_than(before));
}

TEST_CASE("hundreds of launches, failing or not, leave no memory behind") {
  const auto launches = [](int count) {
    for (int i = 0; i < count; ++i) {
      const auto train = [&](Accelerator& accelerator) {
        torch::nn::Linear net(64, 64);
        auto [model, loader] = accelerator.prepare(
            net, data::DataLoader(NoDataset(0, 9), {.batch_size = 4, .workers = i % 3 == 0 ? 1 : 0}));
        for (auto& batch : loader) accelerator.reduce(batch);
        if (i % 2 == 0 && accelerator.is_last()) throw MyError("again");
        accelerator.wait_for_everyone();
      };
      if (i % 2 == 0)
        run_ranks_expecting_error(2, train);
      else
        run_ranks(2, train);
    }
  };
  launches(100);  // allocators and LibTorch reach their steady state
  const double before = resident_mb();
  launches(400);
  // A thread's stack, or the model of one launch, left behind each time would be over 20 MB.
  CHECK(resident_mb() - before < 10);
}

TEST_CASE("a launch inside a launch is a clear error") {
  const auto error = run_ranks_expecting_error(1, [](Accelerator&) { launch({.cpu = 1}, [](Accelerator&) {}); });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
  CHECK_THAT(error.what(), ContainsSubstring("launch"));
}

TEST_CASE("configurations that do not fit say what would be right") {
  const auto nothing = [](Accelerator&) {};
  CHECK_THROWS_WITH(launch({.cpu = 0}, nothing), ContainsSubstring("use 1 to"));
  CHECK_THROWS_WITH(launch({.gpus = 1, .cpu = 1}, nothing), ContainsSubstring("exclude"));
  CHECK_THROWS_WITH(launch({.cpu = 1, .gradient_accumulation_steps = 0}, nothing), ContainsSubstring("use 1 or more"));
  CHECK_THROWS_WITH(launch({.gpus = 1000}, nothing), ContainsSubstring("GPU"));
}

TEST_CASE("a launch on what was examined has its ranks and the config as it is now, and refuses what examine would") {
  AcceleratorState state = examine({.cpu = 2, .threads_per_rank = 3});
  state.config.cpu = 5;
  state.config.seed = 7;
  std::atomic<int> ranks = 0;
  launch_on(state, [&](Accelerator& accelerator) {
    if (accelerator.world_size() == 2 && accelerator.state().config.seed == 7 && at::get_num_threads() == 3) ranks += 1;
  });
  CHECK(ranks == 2);
  const auto nothing = [](Accelerator&) {};
  state.config.gradient_accumulation_steps = 0;
  CHECK_THROWS_WITH(launch_on(state, nothing), ContainsSubstring("use 1 or more"));
  CHECK_THROWS_WITH(launch_on({}, nothing), ContainsSubstring("examine"));
  const auto error =
      run_ranks_expecting_error(1, [&](Accelerator& accelerator) { launch_on(accelerator.state(), nothing); });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
}

TEST_CASE("an exception that is no std::exception arrives as itself") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    if (accelerator.rank() == 1) throw 42;
    accelerator.wait_for_everyone();
  });
  CHECK(error.rank() == 1);
  CHECK_THROWS_AS(error.rethrow_cause(), int);
}
