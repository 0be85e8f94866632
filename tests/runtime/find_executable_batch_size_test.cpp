#include <new>

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Sizes = std::vector<std::int64_t>;

// What running out of memory looks like.
void allocate_too_much() { at::empty({std::int64_t{1} << 50}); }
void throw_like_a_gpu() { TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory"); }
void throw_like_new() { throw std::bad_alloc(); }

struct Greedy : torch::data::datasets::Dataset<Greedy, at::Tensor> {
  at::Tensor get(std::size_t) override { return at::empty({std::int64_t{1} << 50}); }
  std::optional<std::size_t> size() const override { return 4; }
};

at::Tensor train(Accelerator& accelerator, std::int64_t batch_size, std::int64_t largest_that_fits) {
  torch::nn::Sequential net(torch::nn::Linear(3, 8), torch::nn::Dropout(0.5), torch::nn::Linear(8, 1));
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  const at::Tensor rows = at::linspace(-1, 1, 96 * 3).view({96, 3});
  auto [model, optimizer, loader] = accelerator.prepare(
      net, sgd, data::DataLoader(data::TensorDataset(rows), {.batch_size = batch_size, .shuffle = true}));
  int step = 0;
  for (auto& batch : loader) {
    auto window = accelerator.accumulate(model);
    accelerator.backward(model(batch).square().mean());
    if (++step == 2 && batch_size > largest_that_fits) allocate_too_much();
    optimizer.step();
    optimizer.zero_grad();
  }
  return net[0]->as<torch::nn::Linear>()->weight.detach().clone();
}

}  // namespace

TEST_CASE("all ranks halve the batch until it fits everywhere") {
  const auto tried = on_ranks<Sizes>(3, [](Accelerator& accelerator) {
    Sizes sizes;
    const std::int64_t found = accelerator.find_executable_batch_size(100, [&](std::int64_t size) {
      sizes.push_back(size);
      if (accelerator.rank() == 1 && size > 20) throw_like_new();
      if (accelerator.rank() == 2 && size > 60) throw_like_a_gpu();
    });
    sizes.push_back(found);
    return sizes;
  });
  for (const Sizes& sizes : tried) CHECK(sizes == Sizes{100, 50, 25, 12, 12});
}

TEST_CASE("lack of memory is told from other errors") {
  void (*const run_out)() = GENERATE(allocate_too_much, throw_like_a_gpu, throw_like_new);
  run_ranks(2, [&](Accelerator& accelerator) {
    accelerator.find_executable_batch_size(2, [&](std::int64_t size) {
      if (size == 2) run_out();
    });
  });
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    accelerator.find_executable_batch_size(2, [](std::int64_t) { at::ones({2}) + at::ones({3}); });
  });
  CHECK_THROWS_AS(error.rethrow_cause(), c10::Error);
}

TEST_CASE("a dataset that runs out of memory counts as lack of memory") {
  const auto error = run_ranks_expecting_error(1, [](Accelerator& accelerator) {
    accelerator.find_executable_batch_size(2, [&](std::int64_t size) {
      auto loader = accelerator.prepare(data::DataLoader(Greedy(), {.batch_size = static_cast<std::int64_t>(size)}));
      for (auto& batch : loader) (void)batch;
    });
  });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
}

TEST_CASE("a batch of 1 that does not fit is an error that names the rank") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    accelerator.find_executable_batch_size(8, [&](std::int64_t) {
      if (accelerator.rank() == 1) throw std::bad_alloc();
    });
  });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
  CHECK_THAT(error.what(), ContainsSubstring("rank 1 ran out of memory"));
}

TEST_CASE("a size that fits trains as if it had been the first") {
  const bool dispatch = GENERATE(false, true);
  LaunchConfig config;
  config.data_loader.dispatch_batches = dispatch;
  const auto weights = [&](std::int64_t start) {
    return on_ranks<at::Tensor>(2, config, [&](Accelerator& accelerator) {
      at::Tensor weight;
      accelerator.find_executable_batch_size(start, [&](std::int64_t size) { weight = train(accelerator, size, 6); });
      return weight;
    });
  };
  const auto searched = weights(24), direct = weights(6);
  CHECK(at::equal(searched[0], direct[0]));
  CHECK(at::equal(searched[1], direct[0]));
}

TEST_CASE("a rank that runs out of memory while others wait in a collective ends the launch") {
  const auto error = run_ranks_expecting_error(3, [](Accelerator& accelerator) {
    accelerator.find_executable_batch_size(8, [&](std::int64_t) {
      if (accelerator.rank() == 1) throw std::bad_alloc();
      accelerator.reduce(at::ones({2}));
    });
  });
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
  CHECK_THAT(error.what(), ContainsSubstring("find_executable_batch_size"));
  CHECK_THAT(error.what(), ContainsSubstring("all_reduce"));
}
