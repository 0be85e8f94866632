// gpu: what Tandem costs and gains on the GPUs of this machine; ranks share them where there are fewer than ranks.
// Prints one JSON object. benchmarks/gpu.sh runs it. Exit code 77: no GPU is usable.
//   gpu [overhead|graphs|all_reduce|failure|launches]...
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/adamw.h>
#include <nlohmann/json.hpp>

#include "backend/backend.h"
#include "measure/statistics.h"
#include "tandem/tandem.h"
#include "train/make_net.h"

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;
using tandem::Accelerator;

constexpr int kRounds = 5;   // of both sides in turn
constexpr int kWarmup = 20;  // steps before the clock starts

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void synchronize() { c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(0); }

double median(std::vector<double> values) { return measure::spread_of(std::move(values)).median; }

tandem::LaunchConfig on_gpus(int ranks) {
  tandem::LaunchConfig config;
  const int gpus = tandem::gpu_backend()->device_count();
  for (int rank = 0; rank < ranks; ++rank) config.devices.push_back(rank % gpus);
  config.threads_per_rank = 1;
  config.timeout = std::chrono::seconds(60);
  return config;
}

struct Workload {
  std::string name;
  int steps;  // that are timed in a round
  std::function<std::shared_ptr<train::Net>()> make_net;
  std::function<std::pair<at::Tensor, at::Tensor>()> make_batch;  // on the CPU
};

Workload image_workload(const std::string& name, train::ModelKind model,
                        std::vector<std::int64_t> hidden = {512, 512}) {
  return {name, 200,
          [model, hidden] {
            train::Options options;
            options.model = model;
            options.hidden = hidden;
            return train::make_image_net(options);
          },
          [] {
            return std::pair(at::randn({64, 1, 28, 28}), at::randint(0, 10, {64}, at::kLong));
          }};
}

Workload gpt_workload() {
  return {"gpt", 100, [] { return std::make_shared<tandem::models::Gpt>(); },
          [] {
            const auto bytes = at::randint(0, 256, {64, 129}, at::kLong);
            return std::pair(bytes.slice(1, 0, 128).contiguous(), bytes.slice(1, 1, 129).contiguous());
          }};
}

template <class Model>
at::Tensor loss_of(Model& model, const at::Tensor& inputs, const at::Tensor& targets) {
  return torch::nn::functional::cross_entropy(model(inputs), targets.reshape({-1}));
}

// Milliseconds a step.
double time_steps(int steps, const std::function<void()>& step) {
  for (int i = 0; i < kWarmup; ++i) step();
  synchronize();
  const auto start = Clock::now();
  for (int i = 0; i < steps; ++i) step();
  synchronize();
  return 1e3 * seconds_since(start) / steps;
}

// As a program without Tandem would do it.
double bare_loop(const Workload& workload) {
  const c10::Device device(c10::kCUDA, 0);
  torch::manual_seed(1);
  const auto net = workload.make_net();
  net->to(device);
  torch::optim::AdamW optimizer(net->parameters(), torch::optim::AdamWOptions(1e-3));
  const auto [inputs, targets] = tandem::data::to_device(workload.make_batch(), device);
  const auto model = [&](const at::Tensor& in) { return net->forward(in); };
  return time_steps(workload.steps, [&, in = inputs, out = targets] {
    const auto loss = loss_of(model, in, out);
    loss.backward();
    optimizer.step();
    optimizer.zero_grad();
  });
}

double tandem_loop(const Workload& workload, bool fused, bool graphs) {
  double milliseconds = 0;
  auto config = on_gpus(1);
  config.fused_optimizers = fused;
  tandem::launch(config, [&](Accelerator& accelerator) {
    const auto net = workload.make_net();
    auto model = accelerator.prepare(net);
    torch::optim::AdamW inner(net->parameters(), torch::optim::AdamWOptions(1e-3));
    auto optimizer = accelerator.prepare(inner);
    const auto [inputs, targets] = tandem::data::to_device(workload.make_batch(), accelerator.device());
    const auto step = [&](const at::Tensor& in, const at::Tensor& out) {
      const auto window = accelerator.accumulate(model);
      const auto loss = loss_of(model, in, out);
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      return loss.detach();
    };
    auto compiled = accelerator.compile_step(step);
    milliseconds = time_steps(workload.steps, [&, in = inputs, out = targets] {
      if (graphs)
        compiled(in, out);
      else
        step(in, out);
    });
    if (graphs && !compiled.reason().empty()) throw tandem::Error("no graph: " + compiled.reason());
  });
  return milliseconds;
}

// Overhead goal: at most 1.02 with the same optimizer.
Json overhead() {
  Json result;
  for (const auto& workload :
       {image_workload("mlp", train::ModelKind::mlp), image_workload("cnn", train::ModelKind::cnn), gpt_workload()}) {
    std::vector<double> bare, same, ratios, fused;
    for (int round = 0; round < kRounds; ++round) {
      bare.push_back(bare_loop(workload));
      same.push_back(tandem_loop(workload, false, false));
      fused.push_back(tandem_loop(workload, true, false));
      ratios.push_back(same.back() / bare.back());
    }
    result[workload.name] = {{"bare_ms", median(bare)},
                             {"tandem_ms_same_optimizer", median(same)},
                             {"ratio_same_optimizer", median(ratios)},
                             {"tandem_ms", median(fused)},
                             {"speedup", median(bare) / median(fused)}};
  }
  return result;
}

// Goal on launch-bound work: 3 times as fast.
Json graphs() {
  Json result;
  for (const auto& workload :
       {image_workload("mlp of 16 narrow layers", train::ModelKind::mlp, std::vector<std::int64_t>(16, 64)),
        image_workload("mlp", train::ModelKind::mlp), image_workload("cnn", train::ModelKind::cnn), gpt_workload()}) {
    std::vector<double> called, replayed;
    for (int round = 0; round < kRounds; ++round) {
      called.push_back(tandem_loop(workload, true, false));
      replayed.push_back(tandem_loop(workload, true, true));
    }
    result[workload.name] = {{"called_ms", median(called)},
                             {"replayed_ms", median(replayed)},
                             {"speedup", median(called) / median(replayed)}};
  }
  return result;
}

// Microseconds an all-reduce, by bytes; empty where these ranks cannot use the transport.
std::map<std::int64_t, double> time_all_reduces(int ranks, tandem::Transport transport) {
  std::map<std::int64_t, double> times;
  auto config = on_gpus(ranks);
  config.transport = transport;
  try {
    tandem::launch(config, [&](Accelerator& accelerator) {
      for (std::int64_t bytes = 1 << 10; bytes <= 64 << 20; bytes *= 4) {
        const auto values = at::ones({bytes / 4}, accelerator.device());
        const int calls = bytes > 1 << 20 ? 50 : 300;
        for (int i = 0; i < 10; ++i) accelerator.reduce(values);
        synchronize();
        accelerator.wait_for_everyone();
        const auto start = Clock::now();
        for (int i = 0; i < calls; ++i) accelerator.reduce(values);
        synchronize();
        if (accelerator.is_main()) times[bytes] = 1e6 * seconds_since(start) / calls;
      }
    });
  } catch (const tandem::Error&) {
    times.clear();
  }
  return times;
}

Json all_reduce() {
  Json result;
  for (const int ranks : {2, 4, 8}) {
    const auto ours = time_all_reduces(ranks, tandem::Transport::automatic);
    const auto nccl = time_all_reduces(ranks, tandem::Transport::nccl);
    for (const auto& [bytes, time] : ours) {
      Json& row = result[std::to_string(ranks) + " ranks"][std::to_string(bytes)];
      row["automatic_us"] = time;
      if (const auto found = nccl.find(bytes); found != nccl.end()) row["nccl_us"] = found->second;
    }
  }
  return result;
}

// Milliseconds from an exception on one rank, while all reduce, until launch throws it. Goal: at most 2000.
Json failure() {
  Json result;
  for (const int ranks : {2, 4, 8}) {
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      Clock::time_point thrown;
      try {
        tandem::launch(on_gpus(ranks), [&](Accelerator& accelerator) {
          const auto values = at::ones({1'000'000}, accelerator.device());
          for (int i = 0; i < 20; ++i) accelerator.reduce(values);
          if (accelerator.is_last()) {
            thrown = Clock::now();
            throw std::runtime_error("disk on fire");
          }
          for (;;) accelerator.reduce(values);
        });
      } catch (const tandem::RankError&) {
        times.push_back(1e3 * seconds_since(thrown));
      }
    }
    result[std::to_string(ranks) + " ranks"] = {{"ms", median(times)}, {"slowest_ms", measure::spread_of(times).max}};
  }
  return result;
}

// 100 launches in turn, each of which trains a little. Goal: no growth of device memory after the first ten.
Json launches() {
  const auto in_use = [] {
    const auto [free, total] = at::getDeviceAllocator(c10::kCUDA)->getMemoryInfo(0);
    return static_cast<std::int64_t>(total - free);
  };
  const auto workload = image_workload("mlp", train::ModelKind::mlp);
  std::int64_t after_ten = 0;
  std::vector<double> times;
  for (int i = 0; i < 100; ++i) {
    if (i == 10) after_ten = in_use();
    const auto start = Clock::now();
    tandem::launch(on_gpus(2), [&](Accelerator& accelerator) {
      const auto net = workload.make_net();
      auto model = accelerator.prepare(net);
      const auto [inputs, targets] = tandem::data::to_device(workload.make_batch(), accelerator.device());
      for (int step = 0; step < 3; ++step) accelerator.backward(loss_of(model, inputs, targets));
    });
    times.push_back(1e3 * seconds_since(start));
  }
  return {{"ms_each", median(times)}, {"growth_bytes", in_use() - after_ten}};
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::pair<std::string, Json (*)()>> sections{{"overhead", overhead},
                                                                 {"graphs", graphs},
                                                                 {"all_reduce", all_reduce},
                                                                 {"failure", failure},
                                                                 {"launches", launches}};
  const std::vector<std::string> wanted(argv + 1, argv + argc);
  try {
    Json result;
    result["gpus"] = tandem::gpu_backend()->device_count();
    for (const auto& [name, run] : sections)
      if (wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end()) result[name] = run();
    std::printf("%s\n", result.dump().c_str());
    return 0;
  } catch (const tandem::ConfigError& error) {
    std::fprintf(stderr, "gpu: %s\n", error.what());
    return 77;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu: %s\n", error.what());
    return 1;
  }
}
