// What has to hold on real GPUs, whichever there are: ranks share them when there are fewer than ranks. A program of
// its own, which ctest runs on a fake machine and benchmarks/gpu.sh on a real one:
//   tandem_gpu_tests [automatic|nccl|peer_memory [RANKS...]]
// Exit code 77: there is no GPU here.
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "backend/backend.h"
#include "gpu/checks.h"
#include "support/random_tensors.h"
#include "tandem/tandem.h"

using namespace tandem;
using namespace tandem::gpu_checks;

namespace tandem::gpu_checks {

int failures = 0;
Transport transport = Transport::automatic;

void expect(bool holds, const std::string& what) {
  static const auto start = std::chrono::steady_clock::now();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%s: %s (at %.1f s)\n", holds ? "ok" : "FAILED", what.c_str(), seconds);
  std::fflush(stdout);
  failures += holds ? 0 : 1;
}

LaunchConfig on_gpus(int ranks) {
  LaunchConfig config;
  const int gpus = gpu_backend()->device_count();
  for (int rank = 0; rank < ranks; ++rank) config.devices.push_back(rank % gpus);
  config.transport = transport;
  config.timeout = std::chrono::seconds(15);
  config.threads_per_rank = 1;  // nothing here is large enough for more
  return config;
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace tandem::gpu_checks

namespace {

std::string run(const LaunchConfig& config, const std::function<void(Accelerator&)>& body) {
  return error_of([&] { launch(config, body); });
}

std::vector<double> losses_of(LaunchConfig config, bool dispatch) {
  namespace F = torch::nn::functional;
  std::vector<double> losses;
  config.data_loader.dispatch_batches = dispatch;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  const auto inputs = at::randn({512, 32}, generator), targets = at::randint(0, 10, {512}, generator, at::kLong);
  const std::string error = run(config, [&](Accelerator& a) {
    torch::nn::Sequential net(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::BatchNorm1d(64),
                              torch::nn::Linear(64, 10));
    torch::optim::AdamW inner(net->parameters(), torch::optim::AdamWOptions(1e-3));
    auto model = a.prepare(net);
    auto optimizer = a.prepare(inner);
    auto loader = a.prepare(
        data::DataLoader(data::TensorDataset(inputs, targets), {.batch_size = 8, .shuffle = true, .workers = 1}));
    for (int epoch = 0; epoch < 3; ++epoch)
      for (auto& batch : loader) {
        const auto scope = a.accumulate(model);
        const auto loss = F::cross_entropy(model(batch.data), batch.target);
        a.backward(loss);
        optimizer.step();
        optimizer.zero_grad();
        const auto all = a.gather_for_metrics(loss.detach().reshape({1}));
        if (a.is_main()) losses.push_back(all.mean().item<double>());
      }
  });
  if (!error.empty()) std::printf("%s\n", error.c_str());
  return error.empty() ? losses : std::vector<double>();
}

void check_training(int ranks, bool dispatch) {
  const auto gpu = losses_of(on_gpus(ranks), dispatch), again = losses_of(on_gpus(ranks), dispatch);
  const auto cpu = losses_of({.cpu = ranks, .threads_per_rank = 1}, dispatch);
  bool close = !cpu.empty() && gpu.size() == cpu.size();
  for (std::size_t i = 0; close && i < cpu.size(); ++i)
    close = std::abs(gpu[i] - cpu[i]) < 1e-4 * std::abs(cpu[i]) + 1e-4;
  const std::string name = std::to_string(ranks) + (dispatch ? " ranks, dispatched: " : " ranks: ");
  expect(close, name + "losses are those of CPU ranks to 1e-4");
  expect(!gpu.empty() && gpu == again, name + "the same bits in a second run");
}

struct Compiled {
  std::vector<double> losses;
  std::int64_t replays = 0;
  std::string reason;
};

enum class Way { call, compile, compile_what_cannot_be };

Compiled compiled_losses(const LaunchConfig& config, Way way) {
  Compiled result;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(6);
  const auto inputs = at::randn({200, 16}, generator), targets = at::randn({200, 4}, generator);
  const std::string error = run(config, [&](Accelerator& a) {
    torch::nn::Sequential net(torch::nn::Linear(16, 32), torch::nn::BatchNorm1d(32), torch::nn::Dropout(0.25),
                              torch::nn::Linear(32, 4));
    torch::optim::AdamW inner(net->parameters(), torch::optim::AdamWOptions(1e-2));
    optim::CosineAnnealingLR cosine(inner, {.T_max = 50});
    auto [model, optimizer, scheduler] = a.prepare(net, inner, cosine);
    auto loader = a.prepare(data::DataLoader(data::TensorDataset(inputs, targets), {.batch_size = 8, .shuffle = true}));
    const auto step = [&](const at::Tensor& in, const at::Tensor& out) {
      const auto window = a.accumulate(model);
      const auto loss = (model(in) - out).square().mean();
      if (way == Way::compile_what_cannot_be && loss.item<double>() < 0) return loss;
      a.backward(loss);
      a.clip_grad_norm_(model, 1.0);
      optimizer.step();
      optimizer.zero_grad();
      return loss.detach();
    };
    auto compiled = a.compile_step(step);
    for (int epoch = 0; epoch < 3; ++epoch)
      for (auto& batch : loader) {
        const auto loss = way == Way::call ? step(batch.data, batch.target) : compiled(batch.data, batch.target);
        scheduler.step();
        const auto all = a.gather(loss);
        if (a.is_main()) result.losses.push_back(all.mean().item<double>());
      }
    if (a.is_main()) result.replays = compiled.replays(), result.reason = compiled.reason();
  });
  if (!error.empty()) std::printf("%s\n", error.c_str());
  return result;
}

void check_graphs(int ranks) {
  const auto close = [](const auto& a, const auto& b) {
    bool near = !a.empty() && a.size() == b.size();
    for (std::size_t i = 0; near && i < a.size(); ++i) near = std::abs(a[i] - b[i]) < 1e-4 * std::abs(b[i]) + 1e-5;
    return near;
  };
  const std::string name = std::to_string(ranks) + " ranks: ";
  const auto called = compiled_losses(on_gpus(ranks), Way::call);
  const auto compiled = compiled_losses(on_gpus(ranks), Way::compile);
  expect(compiled.replays > 0 && close(compiled.losses, called.losses),
         name + std::to_string(compiled.replays) + " of " + std::to_string(compiled.losses.size()) +
             " steps replayed, with the losses of called ones; " + compiled.reason);
  expect(compiled.losses == compiled_losses(on_gpus(ranks), Way::compile).losses,
         name + "the same bits in a second run");
  const auto refused = compiled_losses(on_gpus(ranks), Way::compile_what_cannot_be);
  expect(refused.replays == 0 && close(refused.losses, called.losses), name + "called as it is: " + refused.reason);
}

using Results = std::vector<at::Tensor>;

// Every collective of every type; small and large, so that both ways of an all-reduce are gone.
Results call_everything(Accelerator& a) {
  Results results;
  std::mt19937 random(3);
  const auto keep = [&](const at::Tensor& tensor) { results.push_back(tensor.cpu()); };
  for (const auto type : test::kTypes) {
    const auto next = [&] { return test::random_tensor(random, type, a.rank()).to(a.device()); };
    if (test::defined_for(comm::ReduceOp::mean, type)) keep(a.reduce(next(), comm::ReduceOp::mean));
    if (test::defined_for(comm::ReduceOp::max, type)) keep(a.reduce(next(), comm::ReduceOp::max));
    keep(a.reduce(next()));
    keep(a.gather(next().reshape({-1})));
  }
  const auto whole = at::arange(3'000'000, at::dtype(at::kFloat).device(a.device())).remainder(1000).mul(a.rank() + 1);
  keep(a.reduce(whole));  // whole numbers: exact in any order
  return results;
}

Results results_of(const LaunchConfig& config) {
  Results results;
  const std::string error = run(config, [&](Accelerator& a) {
    const Results mine = call_everything(a);
    if (a.is_main()) results = mine;
  });
  if (!error.empty()) std::printf("%s\n", error.c_str());
  return results;
}

void check_collectives(int ranks) {
  const auto gpu = results_of(on_gpus(ranks)), cpu = results_of({.cpu = ranks});
  bool same = !gpu.empty() && gpu.size() == cpu.size();
  for (std::size_t i = 0; same && i < gpu.size(); ++i) same = at::equal(gpu[i], cpu[i]);
  expect(same, std::to_string(ranks) + " ranks: collectives have the CPU's bits");
}

void check_generators(int ranks) {
  std::vector<at::Tensor> drawn(static_cast<std::size_t>(ranks)), again = drawn;
  for (auto* into : {&drawn, &again})
    run(on_gpus(ranks), [&](Accelerator& a) {
      const auto ones = at::ones({10000}, a.device());
      (*into)[static_cast<std::size_t>(a.rank())] =
          at::cat({at::rand_like(ones), torch::dropout(ones, 0.5, true), at::randn_like(ones)}).cpu();
    });
  bool same = true, differ = true;
  for (std::size_t rank = 0; rank < drawn.size(); ++rank) {
    same = same && drawn[rank].defined() && again[rank].defined() && at::equal(drawn[rank], again[rank]);
    differ = differ && (rank == 0 || (drawn[rank].defined() && !at::equal(drawn[rank], drawn[0])));
  }
  expect(same && differ, std::to_string(ranks) + " ranks: each draws its own numbers, the same in every run");
}

// Half types: near the CPU's losses, which round in other places.
void check_precision(int ranks, Precision precision, const std::string& name, bool compressed) {
  const auto losses = [&](LaunchConfig config) {
    config.mixed_precision = precision;
    std::vector<double> all;
    const std::string error = run(config, [&](Accelerator& a) {
      torch::nn::Sequential net(torch::nn::Linear(32, 64), torch::nn::GELU(), torch::nn::Linear(64, 1));
      torch::optim::SGD inner(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
      auto model = a.prepare(net);
      auto optimizer = a.prepare(inner);
      if (compressed) model.reducer().set_communication_hook(nn::bf16_compression());
      const auto inputs = at::randn({64, 32}).to(a.device());
      for (int step = 0; step < 10; ++step) {
        const auto window = a.accumulate(model);
        const auto loss = (model(inputs).to(at::kFloat) - inputs.sum(1, true)).square().mean();
        a.backward(loss);
        a.clip_grad_norm_(model, 5.0);
        optimizer.step();
        optimizer.zero_grad();
        const auto mean = a.reduce(loss.detach(), comm::ReduceOp::mean);
        if (a.is_main()) all.push_back(mean.item<double>());
      }
    });
    if (!error.empty()) std::printf("%s\n", error.c_str());
    return all;
  };
  const auto gpu = losses(on_gpus(ranks)), cpu = losses({.cpu = ranks, .threads_per_rank = 1});
  bool near = !gpu.empty() && gpu.size() == cpu.size() && gpu.back() < gpu.front();
  for (std::size_t i = 0; near && i < cpu.size(); ++i)
    near = std::abs(gpu[i] - cpu[i]) < 0.05 * std::abs(cpu[i]) + 0.05;
  expect(near, std::to_string(ranks) + " ranks: " + name + " trains as on the CPU");
}

// All ranks end when one has no memory left, and the error says where it went.
void check_out_of_memory(int ranks) {
  const std::string error = run(on_gpus(ranks), [&](Accelerator& a) {
    torch::nn::Linear net(1000, 1000);
    auto model = a.prepare(net);
    a.backward(model(at::ones({4, 1000}, a.device())).sum());
    if (a.is_last()) at::empty({std::int64_t{1} << 50}, at::dtype(at::kByte).device(a.device()));
    a.wait_for_everyone();
  });
  expect(error.find("holds parameters of 4.0 MB, gradients of 4.0 MB") != std::string::npos,
         std::to_string(ranks) + " ranks: out of memory on one: " + error);
  std::int64_t size = 0;
  const std::string retried = run(on_gpus(ranks), [&](Accelerator& a) {
    const auto mine = a.find_executable_batch_size(64, [&](std::int64_t batch) {
      at::empty({batch > 16 ? std::int64_t{1} << 50 : 1}, at::dtype(at::kByte).device(a.device()));
    });
    if (a.is_main()) size = mine;
  });
  expect(size == 16, std::to_string(ranks) + " ranks: a smaller batch is found together " + retried);
}

void check_not_finite(int ranks) {
  LaunchConfig config = on_gpus(ranks);
  config.gradient_reducer.check_finite = true;
  const std::string error = run(config, [&](Accelerator& a) {
    torch::nn::Linear net(8, 8);
    auto model = a.prepare(net);
    for (int pass = 0; pass < 6; ++pass) {
      const double factor = pass == 3 && a.is_last() ? std::numeric_limits<double>::quiet_NaN() : 1.0;
      a.backward(model(at::ones({4, 8}, a.device())).sum() * factor);
      for (auto& parameter : net->parameters()) parameter.mutable_grad().reset();
    }
  });
  expect(error.find("a gradient of reduction 4 (counted from 1) is infinite or NaN") != std::string::npos,
         std::to_string(ranks) + " ranks: NaN is found: " + error);
}

void check_failure(int ranks) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point thrown;
  const std::string error = run(on_gpus(ranks), [&](Accelerator& a) {
    const auto value = at::ones({1'000'000}, a.device());
    for (int i = 0; i < 20; ++i) a.reduce(value);
    if (a.rank() == ranks - 1) {
      thrown = Clock::now();
      throw std::runtime_error("disk on fire");
    }
    for (;;) a.reduce(value);
  });
  const double seconds = std::chrono::duration<double>(Clock::now() - thrown).count();
  expect(error.find("disk on fire") != std::string::npos,
         std::to_string(ranks) + " ranks: one that throws in the middle of all-reduces has ended all after " +
             std::to_string(seconds) + " s: " + error);
}

// Exact mode: the weights that a training of eight logical shards ends with.
Results exact_weights(LaunchConfig config, Precision precision) {
  config.exact = ExactOptions{.logical_ranks = 8};
  config.mixed_precision = precision;
  Results weights;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const auto images = at::randn({150, 3, 8, 8}, generator), targets = at::randint(0, 10, {150}, generator, at::kLong);
  const std::string error = run(config, [&](Accelerator& a) {
    torch::nn::Sequential net(torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).padding(1)),
                              torch::nn::BatchNorm2d(8), torch::nn::ReLU(), torch::nn::Flatten(),
                              torch::nn::Dropout(0.25), torch::nn::Linear(512, 10));
    torch::optim::AdamW inner(net->parameters(), torch::optim::AdamWOptions(1e-3));
    auto [model, optimizer] = a.prepare(net, inner);
    auto loader = a.prepare(data::DataLoader(data::TensorDataset(images, targets), {.batch_size = 4, .shuffle = true}));
    for (int epoch = 0; epoch < 2; ++epoch)
      for (auto& batch : loader) {
        const auto window = a.accumulate(model);
        a.backward(torch::nn::functional::cross_entropy(model(batch.data), batch.target));
        a.clip_grad_norm_(model, 1.0);
        optimizer.step();
        optimizer.zero_grad();
      }
    if (!a.is_main()) return;
    for (const auto& item : net->named_parameters()) weights.push_back(item.value().detach().cpu());
    for (const auto& item : net->named_buffers()) weights.push_back(item.value().cpu());
  });
  if (!error.empty()) std::printf("%s\n", error.c_str());
  return weights;
}

void check_exact_mode(const std::vector<int>& worlds) {
  for (const auto& [precision, name] : {std::pair{Precision::no, "float32"}, std::pair{Precision::bf16, "bf16"}}) {
    const Results on_one = exact_weights(on_gpus(1), precision);
    for (const int ranks : worlds) {
      if (8 % ranks != 0) continue;
      const Results weights = exact_weights(on_gpus(ranks), precision);
      bool same = !weights.empty() && weights.size() == on_one.size();
      for (std::size_t i = 0; same && i < weights.size(); ++i) same = at::equal(weights[i], on_one[i]);
      expect(same, std::to_string(ranks) + " ranks: exact mode in " + name + " gives the bits of one rank");
    }
  }
}

void check_launches(int ranks) {
  std::string error;
  for (int i = 0; i < 100 && error.empty(); ++i)
    error = run(on_gpus(ranks), [](Accelerator& a) { a.reduce(at::ones({1000}, a.device())); });
  expect(error.empty(), std::to_string(ranks) + " ranks: 100 launches in turn " + error);
}

Transport transport_named(const std::string& name) {
  if (name == "automatic") return Transport::automatic;
  if (name == "nccl") return Transport::nccl;
  if (name == "peer_memory") return Transport::peer_memory;
  throw std::invalid_argument("'" + name + "' is no transport; use automatic, nccl or peer_memory");
}

void check_everything(const std::vector<int>& worlds) {
  for (const int ranks : worlds) {
    check_training(ranks, false);
    check_training(ranks, true);
    check_collectives(ranks);
    check_generators(ranks);
    check_graphs(ranks);
    check_precision(ranks, Precision::bf16, "bf16", false);
    check_precision(ranks, Precision::fp16, "fp16", false);
    check_precision(ranks, Precision::no, "a reduction in bf16", true);
    check_out_of_memory(ranks);
    check_not_finite(ranks);
    if (ranks > 1) check_failure(ranks);
    check_sessions(ranks);
  }
  check_exact_mode(worlds);
  check_launches(std::min(2, worlds.back()));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 1) transport = transport_named(argv[1]);
    std::vector<int> worlds;
    for (int i = 2; i < argc; ++i) worlds.push_back(std::stoi(argv[i]));
    if (worlds.empty()) worlds = {1, 2, 4, 8};
    // LibTorch decides early whether there is CUDA: a program that has trained on CPU ranks can go over to GPUs.
    losses_of({.cpu = 2, .threads_per_rank = 1}, false);
    std::printf("%d GPUs\n", gpu_backend()->device_count());
    check_everything(worlds);
  } catch (const ConfigError& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}
