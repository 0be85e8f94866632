// Datasets that throw or block, and loaders that are left behind.
#include <algorithm>
#include <thread>

#include "data/loader_base.h"
#include "support/index_data.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Broken : torch::data::datasets::Dataset<Broken, at::Tensor> {
  struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  at::Tensor get(std::size_t index) override {
    if (index == 4711) throw Error("unreadable");
    return at::ones({1});
  }
  std::optional<std::size_t> size() const override { return 10'000; }
};

}  // namespace

TEST_CASE("a dataset that throws names sample, epoch, step and rank, and its exception arrives as itself") {
  const bool dispatch = GENERATE(false, true);
  const int workers = GENERATE(0, 2);
  const auto error =
      run_ranks_expecting_error(2, {.data_loader = {.dispatch_batches = dispatch}}, [&](Accelerator& accelerator) {
        auto loader = accelerator.prepare(data::DataLoader(Broken(), {.batch_size = 10, .workers = workers}));
        for (auto& batch : loader) accelerator.reduce(batch);
      });
  CHECK_THAT(error.what(),
             ContainsSubstring("sample 4711 (epoch 0, step 235, for rank 1)") && ContainsSubstring("unreadable"));
  CHECK_THROWS_AS(error.rethrow_cause(), Broken::Error);
}

TEST_CASE("an iterable that throws names its place in the stream") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    const data::IterableDataset failing([](std::int64_t) {
      return [at = 0]() mutable -> std::optional<int> {
        if (at == 5) throw Broken::Error("connection lost");
        return at++;
      };
    });
    one_epoch(accelerator.prepare(data::DataLoader(failing, {.batch_size = 1})));
  });
  CHECK_THAT(error.what(), ContainsSubstring("sample 5 of the stream") && ContainsSubstring("connection lost"));
  CHECK_THROWS_AS(error.rethrow_cause(), Broken::Error);
}

TEST_CASE("loaders with workers may be left, abandoned and destroyed in the middle of an epoch") {
  const bool dispatch = GENERATE(false, true);
  run_ranks(2, {.data_loader = {.dispatch_batches = dispatch}}, [](Accelerator& accelerator) {
    for (int round = 0; round < 20; ++round) {
      auto loader =
          accelerator.prepare(data::DataLoader(Augmented(100), {.batch_size = 2, .workers = 2, .prefetch = 3}));
      for (int epoch = 0; epoch < 3; ++epoch) {
        int steps = 0;
        for (auto& batch : loader) {
          (void)batch;
          if (++steps == round % 5) break;
        }
      }
      auto unused = loader.begin();
    }
  });
}

TEST_CASE("a rank that fails ends reads that wait for long, its own and the others'") {
  struct Blocking : torch::data::datasets::Dataset<Blocking, at::Tensor> {
    at::Tensor get(std::size_t index) override {
      while (index > 4 && !work_is_unwanted()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return at::ones({1});
    }
    std::optional<std::size_t> size() const override { return 100; }
  };
  const int ranks = GENERATE(1, 2);
  const int workers = ranks == 1 ? 2 : 0;  // with workers and more ranks, those that wait could be all of them
  const bool dispatch = GENERATE(false, true);
  const auto error =
      run_ranks_expecting_error(ranks, {.data_loader = {.dispatch_batches = dispatch}}, [&](Accelerator& accelerator) {
        auto loader = accelerator.prepare(data::DataLoader(Blocking(), {.batch_size = 1, .workers = workers}));
        for (auto& batch : loader) {
          (void)batch;
          if (accelerator.is_last() && loader_of(loader).status().step == 1) throw std::runtime_error("enough");
        }
      });
  CHECK_THAT(error.what(), ContainsSubstring("enough"));
}

TEST_CASE("a loader's timeout is an error that says so") {
  struct Slow : torch::data::datasets::Dataset<Slow, at::Tensor> {
    at::Tensor get(std::size_t) override {
      while (!work_is_unwanted()) std::this_thread::yield();
      return at::ones({1});
    }
    std::optional<std::size_t> size() const override { return 4; }
  };
  const auto error = run_ranks_expecting_error(1, [](Accelerator& accelerator) {
    auto loader =
        accelerator.prepare(data::DataLoader(Slow(), {.workers = 1, .timeout = std::chrono::milliseconds(20)}));
    loader_of(loader).start();
    loader_of(loader).next();
  });
  CHECK_THAT(error.what(), ContainsSubstring("timeout of 20 ms"));
}
