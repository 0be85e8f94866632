// overhead: what a training step costs with Tandem, as a ratio to a bare LibTorch loop on hand-written threads with the
// same data, arithmetic and number of intra-op threads (1 a rank). Short runs of both alternate; the figure is the
// median of the pairs' ratios. Both must end with the same weights. Goal: at most 1.02.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <thread>

#include <torch/nn/functional/loss.h>
#include <torch/optim/adamw.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "statistics.h"
#include "tandem/tandem.h"
#include "train/image_nets.h"

namespace {

using Clock = std::chrono::steady_clock;
using tandem::data::MnistDataset;

constexpr std::uint64_t kSeed = 42;
constexpr std::int64_t kBatch = 64;
constexpr int kWarmup = 5;  // steps before the clock starts
constexpr double kTolerance = 1e-5;

struct Setup {
  train::ModelKind model;
  int ranks;
  int steps;  // that are timed
};

struct Run {
  double seconds = 0;               // of the timed steps, on rank 0
  std::vector<at::Tensor> weights;  // rank 0's, at the end
};

std::shared_ptr<train::Net> make_net(const Setup& setup) {
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

Run run_bare(const Setup& setup, const MnistDataset& data) {
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

Run run_tandem(const Setup& setup, const MnistDataset& data) {
  Run result;
  // The optimizer's own step on both sides: what fused steps save (see optimizers.cpp) would hide what the rest costs.
  const tandem::LaunchConfig config{
      .cpu = setup.ranks, .seed = kSeed, .threads_per_rank = 1, .fused_optimizers = false};
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

struct Figures {
  std::vector<double> bare, tandem, ratios;  // seconds a step; their ratio, by pair
  double difference = 0;                     // of the weights
};

Figures measure(const Setup& setup, const std::string& data_dir, int pairs) {
  const MnistDataset data(data_dir, {.limit = (kWarmup + setup.steps) * setup.ranks * kBatch});
  Figures figures;
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

}  // namespace

int main(int argc, char** argv) {
  std::string data_dir = TANDEM_DEFAULT_DATA_DIR;
  int pairs = 15;
  std::string only;
  bool json = false;
  CLI::App app("A training step with Tandem as a ratio to a bare LibTorch loop", "overhead");
  app.add_option("--data-dir", data_dir, "folder with the four files of MNIST");
  app.add_option("--pairs", pairs, "runs of each")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--model", only, "this one only")->check(CLI::IsMember({"mlp", "cnn"}));
  app.add_flag("--json", json, "print one JSON object a setup");
  CLI11_PARSE(app, argc, argv);

  at::set_num_threads(1);
  if (!json)
    std::puts("model  ranks  bare ms/step  tandem ms/step  ratio: median  min   max   weights differ by at most");
  bool same = true;
  for (const Setup& setup : {Setup{train::ModelKind::mlp, 1, 100}, Setup{train::ModelKind::mlp, 2, 100},
                             Setup{train::ModelKind::cnn, 1, 15}, Setup{train::ModelKind::cnn, 2, 15}}) {
    const char* name = setup.model == train::ModelKind::mlp ? "mlp" : "cnn";
    if (!only.empty() && only != name) continue;
    const Figures figures = measure(setup, data_dir, pairs);
    const auto ratios = benchmarks::spread_of(figures.ratios);
    const double bare_ms = benchmarks::spread_of(figures.bare).median * 1e3;
    const double tandem_ms = benchmarks::spread_of(figures.tandem).median * 1e3;
    same = same && figures.difference <= kTolerance;
    if (json)
      std::printf("%s\n", nlohmann::ordered_json{{"benchmark", "overhead"},
                                                 {"model", name},
                                                 {"ranks", setup.ranks},
                                                 {"bare_ms", bare_ms},
                                                 {"tandem_ms", tandem_ms},
                                                 {"ratio", ratios.median},
                                                 {"weights_difference", figures.difference}}
                              .dump()
                              .c_str());
    else
      std::printf("%-5s  %5d  %12.3f  %14.3f  %13.4f  %.3f %.3f  %g\n", name, setup.ranks, bare_ms, tandem_ms,
                  ratios.median, ratios.min, ratios.max, figures.difference);
    std::fflush(stdout);
  }
  if (!same) std::fprintf(stderr, "overhead: the weights differ by more than %g\n", kTolerance);
  return same ? 0 : 1;
}
