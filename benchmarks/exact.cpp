// exact: what exact mode costs. An update of V = 8 logical shards in exact mode, as a ratio to the plain mode with the
// same micro-batches and gradient accumulation in place of shards; and, for what a user pays who would have taken whole
// batches, to the plain mode with one batch a rank. Short runs of the three alternate; each figure is the median of the
// rounds' ratios. Goals, to the same micro-batches: at most 1.15 with 2 ranks, 1.10 with one. --peak prints what one of
// them takes of memory instead, for a script that runs them one by one.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include <torch/nn/functional/loss.h>
#include <torch/optim/adamw.h>
#include <CLI/CLI.hpp>

#include "measure/statistics.h"
#include "tandem/tandem.h"
#include "train/make_net.h"

namespace {

using Clock = std::chrono::steady_clock;
using tandem::Accelerator;

constexpr int kShards = 8;
constexpr int kWarmup = 3;  // updates before the clock starts

enum class Mode { accumulated, exact, whole };

struct Setup {
  std::string model;
  std::int64_t shard;  // samples
  int updates;
  std::int64_t hidden = 512;
};

bool is_text(const Setup& setup) { return setup.model == "gpt"; }

std::shared_ptr<train::Net> make_net(const Setup& setup) {
  if (is_text(setup)) return std::make_shared<tandem::models::Gpt>();
  train::Options options;
  options.model = setup.model == "mlp" ? train::ModelKind::mlp : train::ModelKind::cnn;
  options.hidden = {setup.hidden, setup.hidden};
  return train::make_image_net(options);
}

// Samples of noise: what they are does not matter for time.
tandem::data::TensorDataset<torch::data::Example<>> make_samples(const Setup& setup, std::int64_t count) {
  const std::int64_t length = train::GptOptions{}.block_size;
  if (is_text(setup))
    return {at::randint(0, 256, {count, length}, at::kLong), at::randint(0, 256, {count, length}, at::kLong)};
  return {at::rand({count, 1, 28, 28}), at::randint(0, 10, {count}, at::kLong)};
}

tandem::LaunchConfig config_of(Mode mode, int ranks) {
  tandem::LaunchConfig config{.cpu = ranks, .threads_per_rank = 1};
  if (mode == Mode::exact) config.exact = tandem::ExactOptions{.logical_ranks = kShards};
  if (mode == Mode::accumulated) config.gradient_accumulation_steps = kShards / ranks;
  return config;
}

// Seconds an update.
double run(const Setup& setup, Mode mode, int ranks) {
  const std::int64_t batch = mode == Mode::whole ? setup.shard * kShards / ranks : setup.shard;
  const std::int64_t updates = kWarmup + setup.updates;
  double seconds = 0;
  tandem::launch(config_of(mode, ranks), [&](Accelerator& accelerator) {
    auto net = make_net(setup);
    torch::optim::AdamW inner(net->parameters(), 1e-3);
    auto [model, optimizer, loader] = accelerator.prepare(
        net, inner,
        tandem::data::DataLoader(make_samples(setup, setup.shard * kShards * updates), {.batch_size = batch}));
    std::int64_t made = 0;
    auto start = Clock::now();
    for (auto& [inputs, targets] : loader) {
      const auto micro_batch = accelerator.accumulate(model);
      accelerator.backward(torch::nn::functional::cross_entropy(model(inputs), targets.view(-1)));
      optimizer.step();
      optimizer.zero_grad();
      if (accelerator.sync_gradients() && ++made == kWarmup) start = Clock::now();
    }
    if (accelerator.is_main())
      seconds = std::chrono::duration<double>(Clock::now() - start).count() / static_cast<double>(setup.updates);
  });
  return seconds;
}

void compare(const Setup& setup, int ranks, int rounds) {
  std::vector<double> to_accumulated, to_whole, exact;
  for (int round = 0; round < rounds; ++round) {
    const double accumulated = run(setup, Mode::accumulated, ranks);
    exact.push_back(run(setup, Mode::exact, ranks));
    to_accumulated.push_back(exact.back() / accumulated);
    to_whole.push_back(exact.back() / run(setup, Mode::whole, ranks));
  }
  const auto ratio = measure::spread_of(to_accumulated);
  std::printf("%-5s  %5d  %5lld  %12.2f  %13.3f  %.3f %.3f  %13.3f\n", setup.model.c_str(), ranks,
              static_cast<long long>(setup.shard), measure::spread_of(exact).median * 1e3, ratio.median, ratio.min,
              ratio.max, measure::spread_of(to_whole).median);
  std::fflush(stdout);
}

double peak_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 7;
  std::string only, peak;
  CLI::App app("Exact mode as a ratio to the plain mode", "exact");
  app.add_option("--rounds", rounds, "runs of each")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--model", only, "this one only")->check(CLI::IsMember({"mlp", "cnn", "gpt"}));
  app.add_option("--peak", peak, "print the peak memory of one rank with a large mlp in this mode")
      ->check(CLI::IsMember({"accumulated", "exact"}));
  std::string profiled;
  app.add_option("--profiled", profiled, "only run the mlp on one rank in this mode, for a profiler")
      ->check(CLI::IsMember({"accumulated", "exact"}));
  CLI11_PARSE(app, argc, argv);
  if (!profiled.empty()) {
    const Mode mode = profiled == "exact" ? Mode::exact : Mode::accumulated;
    std::printf("%.2f ms an update\n", run({"mlp", 16, 300}, mode, 1) * 1e3);
    return 0;
  }
  if (!peak.empty()) {
    const Setup large{"mlp", 8, 3, 4096};
    std::int64_t bytes = 0;
    for (const at::Tensor& parameter : make_net(large)->parameters())
      bytes += static_cast<std::int64_t>(parameter.nbytes());
    run(large, peak == "exact" ? Mode::exact : Mode::accumulated, 1);
    std::printf("%s: %.0f MB at most, of gradients of %.0f MB\n", peak.c_str(), peak_mb(),
                static_cast<double>(bytes) / (1 << 20));
    return 0;
  }
  std::puts("model  ranks  shard  ms an update  to accumulated  (min max)  to whole batches");
  for (const Setup& setup : {Setup{"mlp", 16, 40}, Setup{"cnn", 8, 6}, Setup{"gpt", 2, 4}})
    for (const int ranks : {1, 2})
      if (only.empty() || only == setup.model) compare(setup, ranks, rounds);
}
