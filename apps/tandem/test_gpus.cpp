// The parts of `tandem test` that are about GPUs: what can go wrong between several of them, and what they are worth
// together. They need no data, and end within a few minutes.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "backend/device_scope.h"
#include "measure/statistics.h"
#include "self_test.h"
#include "tandem/comm/communicator.h"
#include "tandem/core/error.h"
#include "tandem/models/gpt.h"
#include "tandem/models/sequential_nets.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"
#include "train/make_net.h"
#include "train/options.h"

namespace tandem_tool {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;
using tandem::Accelerator;
using tandem::LaunchConfig;
using tandem::Transport;
using tandem::comm::ReduceOp;

constexpr const char* kNoPeerAccess = "cannot reach";  // in what a launch says where there is none

// The devices of the ranks, by their numbers.
std::vector<int> devices_of(const LaunchConfig& config) {
  std::vector<int> devices;
  for (const c10::Device device : tandem::examine(config).devices) devices.push_back(device.index());
  return devices;
}

LaunchConfig on(LaunchConfig config, std::vector<int> devices) {
  config.gpus.reset();
  config.devices = std::move(devices);
  return config;
}

// The first `count` of the ranks' devices.
LaunchConfig on_first(const LaunchConfig& config, int count) {
  std::vector<int> devices = devices_of(config);
  devices.resize(static_cast<std::size_t>(count));
  return on(config, std::move(devices));
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string rounded(const char* form, double value) {
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), form, value);
  return text.data();
}

// ---- pairs

constexpr std::int64_t kPatternWords = std::int64_t{4} << 20;  // of 4 bytes

// Other words for each sender and receiver, so that bytes from elsewhere are noticed.
at::Tensor pattern(int from, int to) {
  return at::arange(kPatternWords, at::kInt).mul_(2'654'435).add_(7919 * from + 104'729 * to + 1);
}

void expect_pattern(const at::Tensor& got, int from, int to, const char* how) {
  if (at::equal(got.cpu(), pattern(from, to))) return;
  throw tandem::CollectiveError("bytes that GPU " + std::to_string(to) + ' ' + how + " GPU " + std::to_string(from) +
                                " are not those that were there");
}

// Rank 0 has GPU `a`, rank 1 GPU `b`. GB/s that each gets from the other.
double check_pair(const LaunchConfig& config, int a, int b) {
  double rate = 0;
  tandem::launch(on(config, {a, b}), [&](Accelerator& accelerator) {
    const int mine = accelerator.is_main() ? a : b, theirs = accelerator.is_main() ? b : a;
    auto& communicator = accelerator.communicator();
    const at::Tensor sent = pattern(mine, theirs).to(accelerator.device());
    // Each reads the other's memory, at the same time.
    expect_pattern(communicator.all_gather(sent)[static_cast<std::size_t>(accelerator.is_main() ? 1 : 0)], theirs, mine,
                   "reads from");
    // Each writes its half of the sums to the other's.
    at::Tensor sum = sent.to(at::kLong);
    communicator.all_reduce(sum, ReduceOp::sum);
    if (!at::equal(sum.cpu(), pattern(a, b).to(at::kLong) + pattern(b, a)))
      throw tandem::CollectiveError("sums that GPUs " + std::to_string(a) + " and " + std::to_string(b) +
                                    " write to each other do not arrive");
    constexpr int kTimes = 8;
    tandem::synchronize(accelerator.device());
    accelerator.wait_for_everyone();
    const auto start = Clock::now();
    for (int i = 0; i < kTimes; ++i) communicator.all_to_all({sent, sent});
    tandem::synchronize(accelerator.device());
    if (accelerator.is_main()) rate = kTimes * static_cast<double>(sent.nbytes()) / seconds_since(start) * 1e-9;
  });
  return rate;
}

// What of `its` transport is not possible between these ranks; empty where `work` has been done. Throws what is wrong.
std::string refusal_of(LaunchConfig its, const std::function<void(const LaunchConfig&)>& work) {
  std::string warning;
  its.on_warning = [&](const std::string& text) { warning = text; };
  try {
    work(its);
    return {};
  } catch (const tandem::ConfigError& error) {
    return error.what();
  } catch (const tandem::RankError& error) {
    if (!warning.empty()) throw tandem::CollectiveError(warning);
    if (std::string(error.what()).find(kNoPeerAccess) == std::string::npos) throw;
    return "the driver allows no access to each other's memory";
  }
}

std::string refusal_in(const Json& pairs) {
  for (const Json& pair : pairs)
    if (pair.contains("not")) return pair["not"];
  return {};
}

SelfTestResult run_pairs(const LaunchConfig& config) {
  std::vector<int> gpus = devices_of(config);
  std::sort(gpus.begin(), gpus.end());
  gpus.erase(std::unique(gpus.begin(), gpus.end()), gpus.end());
  Json pairs = Json::array();
  for (const Transport transport : {Transport::peer_memory, Transport::nccl}) {
    LaunchConfig its = config;
    its.transport = transport;
    for (std::size_t i = 0; i < gpus.size(); ++i)
      for (std::size_t k = i + 1; k < gpus.size(); ++k) {
        Json pair{{"gpus", {gpus[i], gpus[k]}}, {"by", transport == Transport::nccl ? "NCCL" : "peers' memory"}};
        const std::string refused = refusal_of(its, [&](const LaunchConfig& allowed) {
          pair["GB/s each way"] = std::round(10 * check_pair(allowed, gpus[i], gpus[k])) / 10;
        });
        if (!refused.empty()) pair["not"] = refused;
        pairs.push_back(pair);
      }
  }
  const auto done = std::count_if(pairs.begin(), pairs.end(), [](const Json& pair) { return !pair.contains("not"); });
  if (pairs.empty()) return {"there is one GPU"};
  const std::string all = std::to_string(pairs.size()), these = std::to_string(done);
  return {(done == std::ssize(pairs) ? all : these + " of " + all) +
              " pairs by peers' memory and by NCCL, written and read both ways" +
              (done == std::ssize(pairs) ? "" : "; the others are refused: " + refusal_in(pairs)),
          pairs};
}

// ---- transports

// Seconds of an all-reduce of so many bytes, of the slowest rank.
double all_reduce_seconds(Accelerator& accelerator, std::int64_t bytes) {
  const at::Tensor tensor = at::zeros({bytes / 4}, at::device(accelerator.device()).dtype(at::kFloat));
  auto& communicator = accelerator.communicator();
  constexpr int kCalls = 10;
  std::vector<double> times;
  for (int run = 0; run < 4; ++run) {
    tandem::synchronize(accelerator.device());
    accelerator.wait_for_everyone();
    const auto start = Clock::now();
    for (int call = 0; call < kCalls; ++call) communicator.all_reduce(tensor, ReduceOp::sum);
    tandem::synchronize(accelerator.device());
    if (run > 0) times.push_back(seconds_since(start) / kCalls);
  }
  return accelerator.reduce(measure::spread_of(times).median, ReduceOp::max);
}

SelfTestResult run_transports(const LaunchConfig& config) {
  constexpr std::array<std::int64_t, 6> kBytes{1 << 10, 16 << 10, 256 << 10, 1 << 20, 16 << 20, 64 << 20};
  Json sizes = Json::array();
  for (const std::int64_t bytes : kBytes) sizes.push_back({{"bytes", bytes}});
  std::string refused;
  for (const auto& [transport, name] :
       {std::pair{Transport::nccl, "us by NCCL"}, {Transport::peer_memory, "us by peers' memory"}}) {
    LaunchConfig its = config;
    its.transport = transport;
    const std::string why = refusal_of(its, [&, name = name](const LaunchConfig& allowed) {
      tandem::launch(allowed, [&](Accelerator& accelerator) {
        for (std::size_t i = 0; i < kBytes.size(); ++i) {
          const double seconds = all_reduce_seconds(accelerator, kBytes[i]);
          if (accelerator.is_main()) sizes[i][name] = std::round(1e7 * seconds) / 10;
        }
      });
    });
    if (!why.empty()) refused += std::string("; not ") + name + ": " + why;
  }
  return {"all-reduces of 1 KiB to 64 MiB by NCCL and by peers' memory" + refused, sizes};
}

// ---- repeats

constexpr int kRepeats = 20;

std::vector<at::Tensor> trained_weights(const LaunchConfig& config, const at::Tensor& inputs,
                                        const at::Tensor& labels) {
  std::vector<at::Tensor> weights;
  tandem::launch(config, [&](Accelerator& accelerator) {
    namespace nn = torch::nn;
    nn::Sequential net(nn::Linear(inputs.size(1), 256), nn::ReLU(), nn::Linear(256, 10));
    torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-3));
    auto [model, optimizer] = accelerator.prepare(net, adamw);
    const auto mine = [&](const at::Tensor& all) {
      return all.chunk(accelerator.world_size())[static_cast<std::size_t>(accelerator.rank())].to(accelerator.device());
    };
    const at::Tensor samples = mine(inputs), targets = mine(labels);
    for (int step = 0; step < 10; ++step) {
      const auto window = accelerator.accumulate(model);
      accelerator.backward(nn::functional::cross_entropy(model(samples), targets));
      accelerator.clip_grad_norm_(model, 1.0);
      optimizer.step();
      optimizer.zero_grad();
    }
    if (accelerator.is_main())
      for (const at::Tensor& parameter : net->parameters()) weights.push_back(parameter.detach().cpu());
  });
  return weights;
}

SelfTestResult run_repeats(const LaunchConfig& config) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(11);
  const int ranks = tandem::examine(config).world_size();
  const at::Tensor inputs = at::randn({32 * ranks, 64}, generator);
  const at::Tensor labels = at::randint(10, {32 * ranks}, generator, at::kLong);
  const auto first = trained_weights(config, inputs, labels);
  for (int run = 2; run <= kRepeats; ++run) {
    const auto again = trained_weights(config, inputs, labels);
    for (std::size_t i = 0; i < first.size(); ++i)
      if (!at::equal(first[i], again[i]))
        throw tandem::Error("training " + std::to_string(run) +
                            " of the same kind ends with other bits than the first");
  }
  return {"the same bits in " + std::to_string(kRepeats) + " trainings"};
}

// ---- scaling

struct Network {
  const char* name;
  std::function<std::shared_ptr<train::Net>()> make;
  at::Tensor inputs, targets;  // of a batch
};

std::vector<Network> networks() {
  constexpr std::int64_t kBatch = 64;
  const auto image_net = [](train::ModelKind kind) {
    return [kind] {
      train::Options options;
      options.model = kind;
      return train::make_image_net(options);
    };
  };
  const tandem::models::GptOptions gpt;
  const at::Tensor images = at::rand({kBatch, 1, 28, 28}), labels = at::randint(10, {kBatch}, at::kLong);
  const at::Tensor tokens = at::randint(gpt.vocabulary, {kBatch, gpt.block_size + 1}, at::kLong);
  return {{"mlp", image_net(train::ModelKind::mlp), images, labels},
          {"cnn", image_net(train::ModelKind::cnn), images, labels},
          {"gpt", [gpt] { return std::make_shared<tandem::models::Gpt>(gpt); },
           tokens.narrow(1, 0, gpt.block_size).contiguous(), tokens.narrow(1, 1, gpt.block_size).flatten()}};
}

// Samples a second of all ranks together, on data that is on the devices.
double training_rate(const LaunchConfig& config, const Network& network) {
  double rate = 0;
  tandem::launch(config, [&](Accelerator& accelerator) {
    auto net = network.make();
    torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-3));
    auto [model, optimizer] = accelerator.prepare(net, adamw);
    const at::Tensor inputs = network.inputs.to(accelerator.device()),
                     targets = network.targets.to(accelerator.device());
    const auto steps = [&, &model = model, &optimizer = optimizer](int count) {
      tandem::synchronize(accelerator.device());
      accelerator.wait_for_everyone();
      const auto start = Clock::now();
      for (int step = 0; step < count; ++step) {
        const auto window = accelerator.accumulate(model);
        accelerator.backward(torch::nn::functional::cross_entropy(model(inputs), targets));
        optimizer.step();
        optimizer.zero_grad();
      }
      tandem::synchronize(accelerator.device());
      return seconds_since(start);
    };
    constexpr int kWarmUp = 3, kFewest = 3, kMost = 500;
    steps(kWarmUp);
    const double each = accelerator.reduce(steps(kFewest) / kFewest, ReduceOp::max);
    const int count = static_cast<int>(std::clamp(1.0 / std::max(each, 1e-6), double{kFewest}, double{kMost}));
    const double seconds = accelerator.reduce(steps(count), ReduceOp::max);
    if (accelerator.is_main()) rate = static_cast<double>(count * inputs.size(0) * accelerator.world_size()) / seconds;
  });
  return rate;
}

SelfTestResult run_scaling(const LaunchConfig& config) {
  const int ranks = static_cast<int>(devices_of(config).size());
  std::vector<int> counts;
  for (int count = 1; count < ranks; count *= 2) counts.push_back(count);
  counts.push_back(ranks);
  Json figures = Json::array();
  std::string text;
  for (const Network& network : networks()) {
    double alone = 0;
    for (const int count : counts) {
      const double rate = training_rate(on_first(config, count), network);
      if (count == 1) alone = rate;
      figures.push_back({{"network", network.name}, {"gpus", count}, {"samples/s", std::round(rate)}});
      if (count == ranks)
        text += std::string(text.empty() ? "" : ", ") + network.name + rounded(" %.0f samples/s", rate) +
                (ranks > 1 ? rounded(" (%.2f times one)", rate / alone) : "");
    }
  }
  return {text, figures};
}

// ---- failure and launches

SelfTestResult run_failure(const LaunchConfig& config) {
  Clock::time_point thrown;
  std::string error;
  try {
    tandem::launch(config, [&](Accelerator& accelerator) {
      const at::Tensor tensor = at::ones({1 << 20}, at::device(accelerator.device()));
      for (int i = 0; i < 20; ++i) accelerator.communicator().all_reduce(tensor, ReduceOp::mean);
      if (accelerator.is_last()) {
        thrown = Clock::now();
        throw std::runtime_error("thrown by the test");
      }
      while (accelerator.world_size() > 1) accelerator.communicator().all_reduce(tensor, ReduceOp::mean);
    });
  } catch (const tandem::RankError& caught) {
    error = caught.what();
  }
  const double seconds = seconds_since(thrown);
  if (error.find("thrown by the test") == std::string::npos)
    throw tandem::Error("an exception of the last rank did not come out of the launch, but: " + error);
  tandem::launch(config, [](Accelerator& accelerator) { accelerator.reduce(at::ones({4}, accelerator.device())); });
  return {"an exception of one rank had ended all after " + rounded("%.0f ms", 1e3 * seconds) +
              ", and the next launch works",
          {{"ms", std::round(1e4 * seconds) / 10}}};
}

SelfTestResult run_launches(const LaunchConfig& config) {
  constexpr int kLaunches = 50;
  const auto start = Clock::now();
  for (int i = 0; i < kLaunches; ++i)
    tandem::launch(config,
                   [](Accelerator& accelerator) { accelerator.reduce(at::ones({1000}, accelerator.device())); });
  const double each = seconds_since(start) / kLaunches;
  return {std::to_string(kLaunches) + " launches in turn, " + rounded("%.0f ms each", 1e3 * each),
          {{"ms each", std::round(1e4 * each) / 10}}};
}

}  // namespace

std::vector<SelfTestPart> tests_of_gpus() {
  return {{"pairs", run_pairs},       {"repeats", run_repeats},       {"failure", run_failure},
          {"launches", run_launches}, {"transports", run_transports}, {"scaling", run_scaling}};
}

}  // namespace tandem_tool
