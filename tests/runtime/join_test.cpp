// Ranks with different numbers of steps.
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>
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
  const auto gradients =
      on_ranks<std::vector<double>>(2, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
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
      });
  // (10/2 + (1 + 1)/2) / 2, then (0 + (1 + 1)/2) / 2.
  CHECK(gradients[1] == std::vector<double>{3, 0.5});
}

TEST_CASE("a loader whose ranks differ in steps trains in a join") {
  const auto weights = on_ranks<at::Tensor>(3, {.data_loader = {.even_batches = false}}, [](Accelerator& accelerator) {
    torch::nn::Linear net(2, 1);
    torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
    auto [model, optimizer, loader] = accelerator.prepare(
        net, sgd, data::DataLoader(data::TensorDataset(at::arange(26, at::kFloat).view({13, 2})), {.batch_size = 2}));
    for (int epoch = 0; epoch < 3; ++epoch)
      accelerator.join_uneven_inputs([&] {
        for (auto& batch : loader) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(model(batch).pow(2).mean());
          optimizer.step();
          optimizer.zero_grad();
        }
      });
    return net->weight.detach().clone();
  });
  CHECK(at::equal(weights[0], weights[1]));
  CHECK(at::equal(weights[0], weights[2]));
}

namespace {

// w * x with w = 0: the gradient of the sum is the sum of x. Beside it a row of sparse gradients that gets the same.
struct TwoKinds : torch::nn::Module {
  TwoKinds() {
    weight = register_parameter("weight", torch::zeros({1}));
    rows = register_module("rows", torch::nn::Embedding(torch::nn::EmbeddingOptions(2, 1).sparse(true)));
    const at::NoGradGuard no_grad;
    rows->weight.zero_();
  }
  at::Tensor forward(double x) { return (weight * x).sum() + (rows(at::ones({1}, at::kLong)) * x).sum(); }
  at::Tensor weight;
  torch::nn::Embedding rows{nullptr};
};

enum class Zeroes { first, last, never };

// Where the weights are after rank r has made steps(r) steps of SGD with gradient 1 + r: two models, both trained.
std::vector<std::vector<double>> join_on(int ranks, const std::function<int(int)>& steps, Zeroes zeroes, bool hook,
                                         bool items, int accumulation) {
  return on_ranks<std::vector<double>>(
      ranks, {.gradient_accumulation_steps = accumulation}, [&](Accelerator& accelerator) {
        auto first = std::make_shared<TwoKinds>(), second = std::make_shared<TwoKinds>();
        torch::optim::SGD sgd(first->parameters(), 1.0), other(second->parameters(), 1.0);
        auto [model, model_2, optimizer, optimizer_2] = accelerator.prepare(first, second, sgd, other);
        if (hook)
          for (auto* reducer : {&model.reducer(), &model_2.reducer()})
            reducer->set_communication_hook(
                [](nn::GradientBucket& bucket, comm::Communicator& communicator) -> nn::FinishReduction {
                  const auto number =
                      communicator.start_all_reduce({bucket.gradients}, {bucket.gradients}, comm::ReduceOp::mean);
                  return [&communicator, number] { communicator.wait(number); };
                });
        const auto zero = [&] {
          optimizer.zero_grad();
          optimizer_2.zero_grad();
        };
        accelerator.join_uneven_inputs([&] {
          for (int i = 0; i < steps(accelerator.rank()); ++i)
            for (int m = 0; m < accumulation; ++m) {
              auto window = accelerator.accumulate(model, model_2);
              if (zeroes == Zeroes::first && m == 0 && i > 0) {  // before the window's first pass
                sgd.zero_grad();
                other.zero_grad();
              }
              const double x = accelerator.rank() + 1;
              const auto loss = model->forward(x) + model_2->forward(x);
              if (items)
                accelerator.backward(loss, 1);
              else
                accelerator.backward(loss);
              optimizer.step();
              optimizer_2.step();
              if (zeroes == Zeroes::last) zero();
            }
        });
        std::vector<double> weights;
        for (const auto& net : {first, second}) {
          weights.push_back(net->weight.item<double>());
          weights.push_back(net->rows->weight[1].item<double>());
        }
        return weights;
      });
}

// The same in plain numbers: a rank that has ended counts as zero.
double expected_weight(int ranks, const std::function<int(int)>& steps, Zeroes zeroes, bool items) {
  double weight = 0, held = 0;
  for (int i = 0;; ++i) {
    double mean = 0, alive = 0;
    for (int rank = 0; rank < ranks; ++rank)
      if (i < steps(rank)) mean += held + rank + 1, alive += 1;
    if (alive == 0) return weight;
    mean /= items && zeroes != Zeroes::never ? alive : ranks;
    held = zeroes == Zeroes::never ? mean : 0;
    weight -= mean;
  }
}

}  // namespace

TEST_CASE("a rank that has ended answers with zeros, whenever gradients are dropped and whatever they are") {
  const int ranks = GENERATE(2, 4);
  const auto zeroes = GENERATE(Zeroes::first, Zeroes::last, Zeroes::never);
  const bool hook = GENERATE(false, true), items = GENERATE(false, true);
  const int accumulation = GENERATE(1, 2);
  // Of sums over items the mean is over those of the ranks that go on; what is kept of earlier windows is another sum.
  if (items && zeroes == Zeroes::never) return;
  const std::vector<std::function<int(int)>> uneven{[](int rank) { return rank == 0 ? 1 : 3; },
                                                    [](int rank) { return rank == 0 ? 3 : 1; },
                                                    [](int rank) { return rank + 1; }, [](int) { return 2; }};
  for (const auto& steps : uneven) {
    CAPTURE(ranks, static_cast<int>(zeroes), hook, items, accumulation, steps(0), steps(1));
    const double expected = expected_weight(ranks, steps, zeroes, items);
    for (const auto& weights : join_on(ranks, steps, zeroes, hook, items, accumulation))
      for (const double weight : weights) CHECK(weight == Approx(expected));
  }
}

TEST_CASE("loaders of different lengths: zero_grad may come first") {
  // 4 ranks, 5 samples of 1, one a batch: rank 0 alone has a second step.
  const auto weights = on_ranks<double>(4, {.data_loader = {.even_batches = false}}, [](Accelerator& accelerator) {
    auto net = std::make_shared<TwoKinds>();
    torch::optim::SGD sgd(net->parameters(), 1.0);
    auto [model, optimizer, loader] =
        accelerator.prepare(net, sgd, data::DataLoader(data::TensorDataset(at::ones({5})), {.batch_size = 1}));
    accelerator.join_uneven_inputs([&] {
      for (auto& batch : loader) {
        optimizer.zero_grad();
        accelerator.backward(model->forward(batch.template item<double>()));
        optimizer.step();
      }
    });
    return net->weight.item<double>();
  });
  for (const double weight : weights) CHECK(weight == Approx(-1.25));
}

TEST_CASE("what an unfinished window has added goes in without what was kept before it") {
  const bool items = GENERATE(false, true);
  const auto gradients =
      on_ranks<std::vector<double>>(2, {.gradient_accumulation_steps = 2}, [&](Accelerator& accelerator) {
        auto net = std::make_shared<TwoKinds>();
        auto model = accelerator.prepare(net);
        std::vector<double> seen;
        accelerator.join_uneven_inputs([&] {
          // Rank 0: a window and a half. Rank 1: three windows.
          // Nothing is dropped on rank 0.
          for (int i = 0; i < (accelerator.is_main() ? 3 : 6); ++i) {
            auto window = accelerator.accumulate(model);
            if (!accelerator.is_main() && i % 2 == 0) net->zero_grad();
            const double x = accelerator.is_main() ? 10 : 1;
            if (items)
              accelerator.backward(model->forward(x), 1);
            else
              accelerator.backward(model->forward(x));
            if (accelerator.sync_gradients()) seen.push_back(net->weight.grad().item<double>());
          }
        });
        return seen;
      });
  // Means: (10 + 1) / 2, then (10/2 + 1) / 2, then (0 + 1) / 2. Items: 22 of 4, 12 of 3, 2 of 2.
  const std::vector<double> expected = items ? std::vector<double>{5.5, 4, 1} : std::vector<double>{5.5, 3, 0.5};
  REQUIRE(gradients[1].size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(gradients[1][i] == Approx(expected[i]));
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

TEST_CASE("an exception that leaves a join on all ranks, and is caught, leaves the join too") {
  const auto weights = on_ranks<at::Tensor>(2, [](Accelerator& accelerator) {
    torch::nn::Linear net(4, 1);
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    const auto step = [&, &prepared = model, &stepping = optimizer] {
      accelerator.backward(prepared(at::full({2, 4}, accelerator.rank() + 1.0F)).pow(2).mean());
      stepping.step();
      stepping.zero_grad();
    };
    for (int i = 0; i < 2; ++i) try {
        accelerator.join_uneven_inputs([&] {
          step();
          throw DataError("no more");
        });
      } catch (const DataError&) {
      }
    step();
    accelerator.join_uneven_inputs([&] {
      for (int i = 0; i < 1 + accelerator.rank(); ++i) step();
    });
    return net->weight.detach().clone();
  });
  CHECK(at::equal(weights[0], weights[1]));
}
