#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"

// Trainings whose state the tests save and load.
namespace tandem::test::states {

constexpr std::int64_t kFeatures = 6;

// Sample i: features and a class that depend on i only.
struct Points : torch::data::datasets::Dataset<Points> {
  std::size_t length;
  explicit Points(std::size_t length) : length(length) {}
  torch::data::Example<> get(std::size_t i) override {
    const auto index = static_cast<double>(i);
    return {at::sin(at::arange(kFeatures, at::kFloat) * (index + 1)), at::scalar_tensor(i % 3, at::kLong)};
  }
  std::optional<std::size_t> size() const override { return length; }
};

enum class Kind { sgd, adamw };

struct Run {
  Kind optimizer = Kind::adamw;
  std::int64_t batch_size = 2;
  bool dropout = true;
  int epochs = 3;
  std::size_t samples = 26;
  int stop_after = -1;                       // micro-batches; -1: never
  std::string save_to = {}, load_from = {};  // at the stop; before the start
  bool background = false;
};

// What a training of all ranks ended with.
struct Ended {
  std::vector<at::Tensor> weights;
  std::vector<double> losses;  // of rank 0
  std::int64_t updates = 0;
  double lr = 0;
};

// One training on one rank.
inline Ended train(Accelerator& accelerator, const Run& run) {
  torch::nn::Sequential net(torch::nn::Linear(kFeatures, 8), torch::nn::Tanh(),
                            torch::nn::Dropout(run.dropout ? 0.3 : 0.0), torch::nn::Linear(8, 3));
  std::unique_ptr<torch::optim::Optimizer> inner;
  if (run.optimizer == Kind::sgd)
    inner = std::make_unique<torch::optim::SGD>(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  else
    inner = std::make_unique<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(0.01).amsgrad(true));
  optim::SequentialLR schedule(*inner, optim::with_warmup(4, optim::stage<optim::CosineAnnealingLR>({.T_max = 30})));
  data::DataLoader data(Points(run.samples), {.batch_size = run.batch_size, .shuffle = true});
  auto [model, optimizer, scheduler, loader] = accelerator.prepare(net, *inner, schedule, data);
  optim::ExponentialMovingAverage average(model, {.decay = 0.9});
  accelerator.register_for_checkpointing(average);
  if (!run.load_from.empty()) accelerator.load_state(run.load_from);
  Ended ended;
  int micro_batches = 0;
  const auto step = [&, &optimizer = optimizer, &scheduler = scheduler](const at::Tensor& loss) {
    accelerator.backward(loss);
    optimizer.step();
    scheduler.step();
    optimizer.zero_grad();
    if (accelerator.sync_gradients()) average.update();
    ended.losses.push_back(loss.item<double>());
  };
  const auto stops = [&] {
    const bool now = ++micro_batches == run.stop_after;
    if (now) accelerator.save_state(run.save_to, {.background = run.background});
    return now;
  };
  while (loader.epoch() < run.epochs) {
    for (auto& [points, classes] : loader) {
      {
        auto window = accelerator.accumulate(model);
        step(torch::nn::functional::cross_entropy(model(points), classes));
      }
      if (stops()) return ended;
    }
    for (auto i = loader.steps_without_batch(); i > 0; --i) {  // other ranks have a batch
      {
        auto window = accelerator.accumulate_and_close(model);
        step(model(at::zeros({0, kFeatures})).sum());
      }
      if (stops()) return ended;
    }
  }
  for (const auto& parameter : model.parameters()) ended.weights.push_back(parameter.detach().clone());
  for (const auto& [name, tensor] : average.averages()) ended.weights.push_back(tensor.clone());
  ended.updates = optimizer.updates();
  ended.lr = scheduler.inner()->last_lr()[0];
  return ended;
}

inline Ended train_on(int ranks, const Run& run, const LaunchConfig& config = {}) {
  return on_ranks<Ended>(ranks, config, [&](Accelerator& accelerator) { return train(accelerator, run); })[0];
}

inline bool same_bits(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  bool same = a.size() == b.size() && !a.empty();
  for (std::size_t i = 0; same && i < a.size(); ++i) same = at::equal(a[i], b[i]);
  return same;
}

// A training of `steps` updates of a single layer on this rank.
struct Small {
  torch::nn::Linear net{3, 2};
  torch::optim::AdamW inner{net->parameters(), 0.1};
  nn::Model<torch::nn::LinearImpl> model;
  optim::AcceleratedOptimizer optimizer;

  explicit Small(Accelerator& accelerator) : model(accelerator.prepare(net)), optimizer(accelerator.prepare(inner)) {}

  void train(Accelerator& accelerator, int steps = 1) {
    for (int i = 0; i < steps; ++i) {
      accelerator.backward(model(at::ones({1, 3})).square().sum());
      optimizer.step();
      optimizer.zero_grad();
    }
  }
};

}  // namespace tandem::test::states
