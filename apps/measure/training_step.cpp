#include "measure/training_step.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <numeric>
#include <thread>

#include <torch/nn/functional/loss.h>
#include <torch/optim/adamw.h>

#include "tandem/tandem.h"
#include "train/make_net.h"

namespace measure {
namespace {

using Clock = std::chrono::steady_clock;
using tandem::data::MnistDataset;

constexpr std::uint64_t kSeed = 42;
constexpr std::int64_t kBatch = 64;
constexpr int kWarmup = 5;  // steps before the clock starts

struct Run {
  double seconds = 0;               // of the timed steps, on rank 0
  std::vector<at::Tensor> weights;  // rank 0's, at the end
};

std::shared_ptr<train::Net> make_net(const StepSetup& setup) {
  train::Options options;
  options.model = setup.model;
  return train::make_image_net(options);
}

template <class Model>
at::Tensor loss_of(Model& model, const at::Tensor& images, const at::Tensor& labels) {
  return torch::nn::functional::cross_entropy(model(images), labels);
}

// Counts steps and takes the time of those after the warm-up.
class StepClock {
 public:
  void step_begins() {
    if (step_++ == kWarmup) start_ = Clock::now();
  }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  int step_ = 0;
  Clock::time_point start_;
};

// The mean over the ranks' gradients, written to all of them: each rank computes its part of every parameter.
class GradientAverage {
 public:
  explicit GradientAverage(int ranks) : ranks_(ranks), barrier_(ranks), gradients_(static_cast<std::size_t>(ranks)) {}

  void operator()(int rank, const std::vector<at::Tensor>& parameters) {
    if (ranks_ == 1) return;
    auto& mine = gradients_[static_cast<std::size_t>(rank)];
    mine.clear();
    for (const at::Tensor& parameter : parameters) mine.push_back(parameter.grad().mutable_data_ptr<float>());
    barrier_.arrive_and_wait();
    for (std::size_t i = 0; i < parameters.size(); ++i) average_part(rank, i, parameters[i].numel());
    barrier_.arrive_and_wait();
  }

 private:
  // Loops that the compiler turns into vector instructions.
  void average_part(int rank, std::size_t parameter, std::int64_t size) {
    const std::int64_t begin = size * rank / ranks_, n = size * (rank + 1) / ranks_ - begin;
    float* sum = gradients_[0][parameter] + begin;
    for (std::size_t peer = 1; peer < gradients_.size(); ++peer) {
      const float* values = gradients_[peer][parameter] + begin;
      for (std::int64_t i = 0; i < n; ++i) sum[i] += values[i];
    }
    for (std::int64_t i = 0; i < n; ++i) sum[i] /= static_cast<float>(ranks_);
    for (std::size_t peer = 1; peer < gradients_.size(); ++peer)
      std::copy_n(sum, n, gradients_[peer][parameter] + begin);
  }

  const int ranks_;
  std::barrier<> barrier_;
  std::vector<std::vector<float*>> gradients_;  // by rank and parameter
};

Run run_bare(const StepSetup& setup, const MnistDataset& data) {
  Run result;
  GradientAverage average(setup.ranks);
  torch::manual_seed(kSeed);
  std::vector<std::shared_ptr<train::Net>> models;
  for (int rank = 0; rank < setup.ranks; ++rank) {
    models.push_back(make_net(setup));
    const torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < models[0]->parameters().size(); ++i)
      models.back()->parameters()[i].copy_(models[0]->parameters()[i]);
  }
  const auto train_rank = [&](int rank) {
    auto& model = models[static_cast<std::size_t>(rank)];
    const auto parameters = model->parameters();
    torch::optim::AdamW adamw(parameters, torch::optim::AdamWOptions(1e-3));
    MnistDataset dataset = data;
    const auto forward = [&](const at::Tensor& input) { return model->forward(input); };
    StepClock clock;
    for (int step = 0; step < kWarmup + setup.steps; ++step) {
      clock.step_begins();
      std::vector<std::size_t> indices(kBatch);
      std::iota(indices.begin(), indices.end(), static_cast<std::size_t>((step * setup.ranks + rank) * kBatch));
      const auto batch = dataset.get_batch(indices);
      const at::Tensor loss = loss_of(forward, batch.data, batch.target);
      loss.backward();
      average(rank, parameters);
      adamw.step();
      adamw.zero_grad();
    }
    if (rank == 0) result = {clock.seconds(), parameters};
  };
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < setup.ranks; ++rank) threads.emplace_back(train_rank, rank);
  threads.clear();  // joins
  return result;
}

Run run_tandem(const StepSetup& setup, const MnistDataset& data) {
  Run result;
  // The optimizer's own step on both sides: what fused steps save (see optimizers.cpp) would hide what the rest costs.
  const tandem::LaunchConfig config{
      .cpu = setup.ranks, .seed = kSeed, .threads_per_rank = 1, .fused_optimizers = false, .cancel = setup.cancel};
  tandem::launch(config, [&](tandem::Accelerator& accelerator) {
    auto net = make_net(setup);
    torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-3));
    tandem::data::DataLoader batches(data, {.batch_size = kBatch});
    auto [model, optimizer, loader] = accelerator.prepare(net, adamw, batches);
    StepClock clock;
    clock.step_begins();
    for (auto& [images, labels] : loader) {
      auto window = accelerator.accumulate(model);
      const at::Tensor loss = loss_of(model, images, labels);
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      clock.step_begins();  // the next one's includes reading its batch
    }
    if (accelerator.is_main()) result = {clock.seconds(), model.parameters()};
  });
  return result;
}

double largest_difference(const Run& a, const Run& b) {
  const torch::NoGradGuard no_grad;
  double largest = 0;
  for (std::size_t i = 0; i < a.weights.size(); ++i)
    largest = std::max(largest, (a.weights[i] - b.weights[i]).abs().max().item<double>());
  return largest;
}

}  // namespace

StepFigures time_steps(const StepSetup& setup, const std::string& data_dir, int pairs) {
  const MnistDataset data(data_dir, {.limit = (kWarmup + setup.steps) * setup.ranks * kBatch});
  StepFigures figures;
  for (int pair = 0; pair < pairs; ++pair) {
    Run bare, tandem;
    // Each goes first as often as the other, so that a machine that gets slower favours neither.
    if (pair % 2 == 0) bare = run_bare(setup, data);
    tandem = run_tandem(setup, data);
    if (pair % 2 != 0) bare = run_bare(setup, data);
    figures.bare.push_back(bare.seconds / setup.steps);
    figures.tandem.push_back(tandem.seconds / setup.steps);
    figures.ratios.push_back(tandem.seconds / bare.seconds);
    figures.difference = std::max(figures.difference, largest_difference(bare, tandem));
  }
  return figures;
}

}  // namespace measure
