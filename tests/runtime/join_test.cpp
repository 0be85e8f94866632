// Ranks with different numbers of steps.
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Ended {
  std::vector<at::Tensor> weights;
  double lr = 0;
  std::int64_t updates = 0;
};

// Rank r makes steps(r) steps within join_uneven_inputs, and then all make one more together.
std::vector<Ended> train(int ranks, const std::function<int(int)>& steps, bool items) {
  return on_ranks<Ended>(ranks, [&](Accelerator& accelerator) {
    torch::nn::Sequential net(torch::nn::Linear(4, 8), torch::nn::BatchNorm1d(8), torch::nn::Linear(8, 1));
    torch::optim::AdamW adamw(net->parameters(), 0.1);
    optim::CosineAnnealingLR cosine(adamw, {.T_max = 100});
    auto [model, optimizer, scheduler] = accelerator.prepare(net, adamw, cosine);
    const auto step = [&] {
      auto window = accelerator.accumulate(model);
      const auto loss = model(torch::randn({6, 4})).pow(2);
      if (items)
        accelerator.backward(loss.sum(), 6);
      else
        accelerator.backward(loss.mean());
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
    };
    accelerator.join_uneven_inputs([&] {
      for (int i = 0; i < steps(accelerator.rank()); ++i) step();
    });
    Ended ended;
    step();
    for (const auto& tensor : net->parameters()) ended.weights.push_back(tensor.detach().clone());
    for (const auto& tensor : net->buffers()) ended.weights.push_back(tensor.clone());
    ended.lr = adamw.param_groups()[0].options().get_lr();
    ended.updates = optimizer.updates();
    return ended;
  });
}

}  // namespace

TEST_CASE("ranks with fewer steps answer the others, and go on with the same weights, state and schedule") {
  const int longest = GENERATE(0, 1, 2);
  const bool items = GENERATE(false, true);
  const auto ended = train(
      3, [&](int rank) { return rank == longest ? 7 : 2 + rank; }, items);
  for (const auto& rank : ended) {
    CHECK(rank.updates == 8);
    CHECK(rank.lr == ended[0].lr);
    REQUIRE(rank.weights.size() == ended[0].weights.size());
    for (std::size_t i = 0; i < rank.weights.size(); ++i) CHECK(at::equal(rank.weights[i], ended[0].weights[i]));
  }
}

TEST_CASE("a rank may have no step at all, and all may have as many") {
  for (const int others : {0, 3}) {
    const auto ended = train(
        2, [&](int rank) { return rank == 0 ? others : 3; }, false);
    for (std::size_t i = 0; i < ended[0].weights.size(); ++i)
      CHECK(at::equal(ended[0].weights[i], ended[1].weights[i]));
    CHECK(ended[0].updates == 4);
  }
}

TEST_CASE("the mean divides by the world size, whoever has ended, and an unfinished window takes part") {
  const auto gradients = on_ranks<std::vector<double>>(
      2,
      [](Accelerator& accelerator) {
        torch::nn::Linear net(torch::nn::LinearOptions(1, 1).bias(false));
        auto model = accelerator.prepare(net);
        std::vector<double> seen;
        accelerator.join_uneven_inputs([&] {
          // Rank 0: one micro-batch, the window stays open. Rank 1: two windows of two.
          for (int i = 0; i < (accelerator.is_main() ? 1 : 4); ++i) {
            auto window = accelerator.accumulate(model);
            accelerator.backward(model(torch::ones({1, 1}) * (accelerator.is_main() ? 10 : 1)).sum());
            if (!accelerator.sync_gradients()) continue;
            seen.push_back(net->weight.grad().item<double>());
            net->weight.mutable_grad().reset();
          }
        });
        return seen;
      },
      {.gradient_accumulation_steps = 2});
  // (10/2 + (1 + 1)/2) / 2, then (0 + (1 + 1)/2) / 2.
  CHECK(gradients[1] == std::vector<double>{3, 0.5});
}

TEST_CASE("a loader whose ranks differ in steps trains in a join") {
  const auto weights = on_ranks<at::Tensor>(
      3,
      [](Accelerator& accelerator) {
        torch::nn::Linear net(2, 1);
        torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
        auto [model, optimizer, loader] = accelerator.prepare(
            net, sgd,
            data::DataLoader(data::TensorDataset(at::arange(26, at::kFloat).view({13, 2})), {.batch_size = 2}));
        for (int epoch = 0; epoch < 3; ++epoch)
          accelerator.join_uneven_inputs([&] {
            for (auto& batch : loader) {
              auto step = accelerator.accumulate(model);
              accelerator.backward(model(batch).pow(2).mean());
              optimizer.step();
              optimizer.zero_grad();
            }
          });
        return net->weight.detach().clone();
      },
      {.data_loader = {.even_batches = false}});
  CHECK(at::equal(weights[0], weights[1]));
  CHECK(at::equal(weights[0], weights[2]));
}

TEST_CASE("another collective within a join is an error that names it, not a hang") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    accelerator.join_uneven_inputs([&] {
      if (accelerator.rank() == 1) accelerator.reduce(torch::ones({2}));
    });
  });
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
  CHECK_THAT(error.what(), ContainsSubstring("all_reduce") && ContainsSubstring("join_uneven_inputs"));
}
