// Trainings whose step is compiled, or called, on a fake CUDA.
#pragma once

#include <torch/data/example.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include "support/fake_machine.h"

namespace tandem::test::compiled {

constexpr std::int64_t kRehearsals = 3;

struct Run {
  std::vector<double> losses;
  std::vector<at::Tensor> weights;
  std::int64_t replays = 0, updates = 0, counted = 0;  // counted by the optimizer's state
  std::string reason;
  std::optional<StepTimes> times;

  bool same_training(const Run& other) const {
    return losses == other.losses && updates == other.updates && counted == other.counted &&
           std::equal(weights.begin(), weights.end(), other.weights.begin(), other.weights.end(),
                      [](const at::Tensor& a, const at::Tensor& b) { return at::equal(a, b); });
  }
};

// What one rank trains, as the programs below see it.
struct Trainee {
  Accelerator& a;
  torch::nn::Sequential net;
  torch::optim::Optimizer& inner;
  nn::Model<torch::nn::SequentialImpl> model;
  optim::AcceleratedOptimizer optimizer;
  optim::AcceleratedScheduler scheduler;     // halves the learning rate
  std::optional<optim::OneCycleLR> cycle{};  // the one program's that has it
  int call = 0;                              // the number of the call

  at::Tensor loss(const at::Tensor& in, const at::Tensor& out) const { return (model(in) - out).square().mean(); }
};

using MakeOptimizer = std::function<std::unique_ptr<torch::optim::Optimizer>(const std::vector<at::Tensor>&)>;
using Step = std::function<at::Tensor(Trainee&, const at::Tensor& in, const at::Tensor& out)>;
// The loop's body: calls `step`, which is recorded or not, with the batch.
using Call = std::function<at::Tensor(Trainee&, at::Tensor in, at::Tensor out,
                                      const std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>& step)>;

inline std::unique_ptr<torch::optim::Optimizer> adamw(const std::vector<at::Tensor>& parameters) {
  return std::make_unique<torch::optim::AdamW>(parameters, torch::optim::AdamWOptions(0.01));
}

inline MakeOptimizer sgd(double momentum) {
  return [momentum](const std::vector<at::Tensor>& parameters) {
    return std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(0.1).momentum(momentum));
  };
}

inline at::Tensor step_without_window(Trainee& t, const at::Tensor& in, const at::Tensor& out) {
  const auto loss = t.loss(in, out);
  t.a.backward(loss);
  t.optimizer.step();
  t.optimizer.zero_grad();
  return loss.detach();
}

inline at::Tensor plain_step(Trainee& t, const at::Tensor& in, const at::Tensor& out) {
  const auto window = t.a.accumulate(t.model);
  return step_without_window(t, in, out);
}

// A plain step that does something else first.
inline Step step_with(std::function<void(Accelerator&)> something) {
  return [something](Trainee& t, const at::Tensor& in, const at::Tensor& out) {
    const auto window = t.a.accumulate(t.model);
    something(t.a);
    return step_without_window(t, in, out);
  };
}

inline at::Tensor step_with_schedule(Trainee& t, const at::Tensor& in, const at::Tensor& out) {
  const auto window = t.a.accumulate(t.model);
  const auto loss = step_without_window(t, in, out);
  t.scheduler.step();
  return loss;
}

inline at::Tensor step_that_clips(Trainee& t, const at::Tensor& in, const at::Tensor& out) {
  const auto window = t.a.accumulate(t.model);
  const auto loss = t.loss(in, out);
  t.a.backward(loss);
  t.a.clip_grad_norm_(t.model, 0.5);
  t.optimizer.step();
  t.optimizer.zero_grad();
  return loss.detach();
}

inline at::Tensor step_that_sets_gradients_to_zero(Trainee& t, const at::Tensor& in, const at::Tensor& out) {
  const auto window = t.a.accumulate(t.model);
  const auto loss = t.loss(in, out);
  t.a.backward(loss);
  t.optimizer.step();
  t.optimizer.zero_grad(/*set_to_none=*/false);
  return loss.detach();
}

inline at::Tensor step_that_drops_gradients_first(Trainee& t, const at::Tensor& in, const at::Tensor& out) {
  const auto window = t.a.accumulate(t.model);
  const auto loss = t.loss(in, out);
  t.optimizer.zero_grad();
  t.a.backward(loss);
  t.optimizer.step();
  return loss.detach();
}

inline at::Tensor step_without_update(Trainee& t, const at::Tensor& in, const at::Tensor& out) {
  const auto window = t.a.accumulate(t.model);
  const auto loss = t.loss(in, out);
  t.a.backward(loss);
  return loss.detach();
}

struct Program {
  std::string name = "plain";
  MakeOptimizer make_optimizer = adamw;
  double dropout = 0;
  Step step = plain_step;
  Call call = [](Trainee&, const at::Tensor& in, const at::Tensor& out, const auto& step) { return step(in, out); };
  std::int64_t samples = 96;  // in batches of 8
  CompileStepOptions options{};
  at::ScalarType type = at::kFloat;
};

inline std::int64_t count_of(const torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
  const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
  const auto* state = found == optimizer.state().end()
                          ? nullptr
                          : dynamic_cast<const torch::optim::AdamWParamState*>(found->second.get());
  return state ? state->step() : 0;
}

// Two epochs; what rank 0 has in the end.
inline Run train(const LaunchConfig& config, const Program& program, bool compile) {
  Run run;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  const auto inputs = at::randn({program.samples, 6}, generator, program.type),
             targets = at::randn({program.samples, 3}, generator, program.type);
  launch(config, [&](Accelerator& a) {
    torch::nn::Sequential net(torch::nn::Linear(6, 16), torch::nn::Dropout(program.dropout), torch::nn::BatchNorm1d(16),
                              torch::nn::Linear(16, 3));
    net->to(program.type);
    const auto inner = program.make_optimizer(net->parameters());
    optim::ExponentialLR halving(*inner, {.gamma = 0.5});
    auto [model, optimizer, scheduler] = a.prepare(net, *inner, halving);
    Trainee t{a, net, *inner, model, optimizer, scheduler};
    auto loader = a.prepare(data::DataLoader(data::TensorDataset(inputs, targets), {.batch_size = 8}));
    const auto step = [&](const at::Tensor& in, const at::Tensor& out) { return program.step(t, in, out); };
    auto compiled = a.compile_step(step, program.options);
    const auto chosen = [&](const at::Tensor& in, const at::Tensor& out) {
      return compile ? at::Tensor(compiled(in, out)) : step(in, out);
    };
    for (int epoch = 0; epoch < 2; ++epoch)
      for (auto& [in, out] : loader) {
        const at::Tensor loss = program.call(t, in, out, chosen);
        t.call += 1;
        const at::Tensor all = a.gather(loss);
        if (a.is_main()) run.losses.push_back(all.mean().item<double>());
      }
    if (!a.is_main()) return;
    for (const auto& weight : net->parameters()) run.weights.push_back(weight.detach().to(at::kCPU, true));
    run.replays = compiled.replays();
    run.reason = compiled.reason();
    run.times = compiled.times();
    run.updates = optimizer.updates();
    run.counted = count_of(*inner, net->parameters().front());
  });
  return run;
}

}  // namespace tandem::test::compiled
