#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "self_test.h"
#include "tandem/core/error.h"
#include "tandem/data/tensor_dataset.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"

namespace tandem_tool {
namespace {

namespace nn = torch::nn;

constexpr std::int64_t kFeatures = 32, kClasses = 10, kBatch = 8;  // of a rank
constexpr int kSteps = 12;
constexpr double kTolerance = 1e-5;

// The losses of `steps` updates, means over the global batch of `batch` samples a rank.
std::vector<double> losses(const tandem::LaunchConfig& config, std::int64_t batch, const at::Tensor& inputs,
                           const at::Tensor& labels) {
  std::vector<double> losses;
  tandem::launch(config, [&](tandem::Accelerator& accelerator) {
    nn::Sequential net(nn::Linear(kFeatures, 64), nn::ReLU(), nn::Linear(64, kClasses));
    torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-2));
    tandem::data::DataLoader data(tandem::data::TensorDataset(inputs, labels), {.batch_size = batch});
    auto [model, optimizer, loader] = accelerator.prepare(net, adamw, data);
    for (auto& [samples, targets] : loader) {
      auto window = accelerator.accumulate(model);
      const at::Tensor loss = nn::functional::cross_entropy(model(samples), targets);
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      const double mean = accelerator.reduce(loss.detach(), tandem::comm::ReduceOp::mean).item<double>();
      if (accelerator.is_main()) losses.push_back(mean);
    }
  });
  return losses;
}

tandem::LaunchConfig one_rank(tandem::LaunchConfig config) {
  if (tandem::examine(config).devices.front().is_cpu()) {
    config.cpu = 1;
    config.gpus.reset();
    config.devices.clear();
  } else {
    config.gpus = 1;
    config.devices.clear();
  }
  return config;
}

std::string run_training(const tandem::LaunchConfig& config) {
  const int ranks = tandem::examine(config).world_size();
  const std::int64_t global = kBatch * ranks;
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const at::Tensor inputs = at::randn({global * kSteps, kFeatures}, generator);
  const at::Tensor labels = at::randint(kClasses, {global * kSteps}, generator, at::kLong);
  const auto all = losses(config, kBatch, inputs, labels), one = losses(one_rank(config), global, inputs, labels);
  double largest = 0;
  for (int step = 0; step < kSteps; ++step) {
    const double expected = one.at(static_cast<std::size_t>(step)), got = all.at(static_cast<std::size_t>(step));
    const double off = std::abs(got - expected) / expected;
    if (!(off <= kTolerance))
      throw tandem::Error("the loss of step " + std::to_string(step + 1) + " on " + std::to_string(ranks) +
                          " ranks is " + std::to_string(got) + ", on one rank " + std::to_string(expected));
    largest = std::max(largest, off);
  }
  std::array<char, 96> text;
  std::snprintf(text.data(), text.size(), "%d losses as on one rank, to %.1e of their value", kSteps, largest);
  return text.data();
}

}  // namespace

SelfTestPart test_training() { return {"training", run_training}; }

}  // namespace tandem_tool
