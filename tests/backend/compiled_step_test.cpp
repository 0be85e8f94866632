// Steps that are recorded and replayed, on a fake CUDA whose graphs do the recorded operators again, beside the same
// steps called.
#include <torch/data/example.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <memory>

#include "support/fake_machine.h"

using namespace tandem;
using namespace tandem::test;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr int kRehearsals = 3;

struct Run {
  std::vector<double> losses;
  std::vector<at::Tensor> weights;
  std::int64_t replays = 0, updates = 0, counted = 0;  // counted by the optimizer's state
  std::string reason;

  bool same_training(const Run& other) const {
    return losses == other.losses && updates == other.updates && counted == other.counted &&
           std::equal(weights.begin(), weights.end(), other.weights.begin(), other.weights.end(),
                      [](const at::Tensor& a, const at::Tensor& b) { return at::equal(a, b); });
  }
};

struct Setup {
  bool sgd = false;
  double momentum = 0.5;
  double dropout = 0;
  bool schedule = false;      // in the step
  std::int64_t samples = 96;  // in batches of 8
  bool clip = false, keep_gradients = false, window_outside = false;
  bool short_batch = false;                        // on the last rank, in call 6
  bool step_outside = false, clear_first = false;  // where the optimizer steps, and the gradients are dropped
  bool one_cycle = false;
  std::function<void(Accelerator&)> within{};                                           // the step
  std::function<void(int, torch::nn::Sequential&, torch::optim::Optimizer&)> before{};  // a call, by its number
};

// Learning rates are numbers that float32 has, so that called and replayed steps round alike.
std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Setup& setup, const torch::nn::Sequential& net) {
  if (setup.sgd)
    return std::make_unique<torch::optim::SGD>(net->parameters(),
                                               torch::optim::SGDOptions(0.125).momentum(setup.momentum));
  return std::make_unique<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(1.0 / 64));
}

std::int64_t count_of(const torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
  const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
  const auto* state = found == optimizer.state().end()
                          ? nullptr
                          : dynamic_cast<const torch::optim::AdamWParamState*>(found->second.get());
  return state ? state->step() : 0;
}

// Two epochs; what rank 0 has in the end.
Run train(const LaunchConfig& config, const Setup& setup, bool compile) {
  Run run;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  const auto inputs = at::randn({setup.samples, 6}, generator), targets = at::randn({setup.samples, 3}, generator);
  launch(config, [&](Accelerator& a) {
    torch::nn::Sequential net(torch::nn::Linear(6, 16), torch::nn::Dropout(setup.dropout), torch::nn::BatchNorm1d(16),
                              torch::nn::Linear(16, 3));
    const auto inner = make_optimizer(setup, net);
    optim::ExponentialLR halving(*inner, {.gamma = 0.5});
    auto [model, optimizer, scheduler] = a.prepare(net, *inner, halving);
    std::optional<optim::OneCycleLR> cycle;
    if (setup.one_cycle) cycle.emplace(*inner, optim::OneCycleLROptions{.max_lr = {0.125}, .total_steps = 100});
    auto loader = a.prepare(data::DataLoader(data::TensorDataset(inputs, targets), {.batch_size = 8}));
    const auto compute = [&](const at::Tensor& in, const at::Tensor& out) {
      const auto loss = (model(in) - out).square().mean();
      if (setup.within) setup.within(a);
      if (setup.clear_first) optimizer.zero_grad();
      a.backward(loss);
      if (setup.clip) a.clip_grad_norm_(model, 0.5);
      if (setup.step_outside) return loss.detach();
      optimizer.step();
      if (setup.schedule) scheduler.step();
      if (!setup.clear_first) optimizer.zero_grad(!setup.keep_gradients);
      return loss.detach();
    };
    const auto step = [&](const at::Tensor& in, const at::Tensor& out) {
      if (setup.window_outside) return compute(in, out);
      const auto window = a.accumulate(model);
      return compute(in, out);
    };
    auto compiled = a.compile_step(step);
    int call = 0;
    for (int epoch = 0; epoch < 2; ++epoch)
      for (auto& [in, out] : loader) {
        if (setup.before) setup.before(call, net, *inner);
        if (setup.short_batch && call == 6 && a.is_last()) in = in.slice(0, 0, 4), out = out.slice(0, 0, 4);
        call += 1;
        std::unique_ptr<MicroBatch> window;
        if (setup.window_outside) window.reset(new MicroBatch(a.accumulate()));
        const at::Tensor loss = compile ? compiled(in, out) : step(in, out);
        if (setup.step_outside) {
          optimizer.step();
          optimizer.zero_grad();
        }
        if (cycle) cycle->step();
        const at::Tensor all = a.gather(loss);
        if (a.is_main()) run.losses.push_back(all.mean().item<double>());
      }
    if (!a.is_main()) return;
    for (const auto& weight : net->parameters()) run.weights.push_back(weight.detach().to(at::kCPU, true));
    run.replays = compiled.replays();
    run.reason = compiled.reason();
    run.updates = optimizer.updates();
    run.counted = count_of(*inner, net->parameters().front());
  });
  return run;
}

}  // namespace

TEST_CASE("a replayed step does what a called one does, to the bit") {
  struct Place {
    std::vector<int> devices;
    Transport transport = Transport::automatic;
  };
  const Place where = GENERATE(values<Place>({{{0}}, {{0, 0}}, {{0, 1}}, {{2, 5, 6}, Transport::nccl}}));
  const Setup setup = GENERATE(values<Setup>({{},
                                              {.sgd = true},
                                              {.sgd = true, .momentum = 0},
                                              {.dropout = 0.3},
                                              {.schedule = true},
                                              {.clip = true},
                                              {.keep_gradients = true},
                                              {.step_outside = true},
                                              {.clear_first = true},
                                              {.window_outside = true}}));
  CAPTURE(where.devices, setup.sgd, setup.momentum, setup.dropout, setup.schedule, setup.clip, setup.keep_gradients,
          setup.step_outside, setup.clear_first, setup.window_outside);
  fake::reset();
  const Machine machine;
  const auto config = machine.config(where.devices, where.transport);
  const Run called = train(config, setup, false), compiled = train(config, setup, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.reason == "");
  CHECK(compiled.replays == static_cast<std::int64_t>(compiled.losses.size()) - kRehearsals);
  CHECK(called.replays == 0);
  machine.check_clean();
}

TEST_CASE("batches of another size are called, and the others go on being replayed") {
  struct Case {
    std::vector<int> devices;
    std::int64_t samples, called;
    bool short_batch;
    std::string reason;
  };
  const Case c = GENERATE(values<Case>({{{0}, 100, 2, false, "tensor 0 has sizes [4, 6], and had [8, 6]"},
                                        {{0}, 96, 1, true, ""},
                                        {{0, 1}, 96, 1, true, ""}}));
  CAPTURE(c.devices, c.samples);
  fake::reset();
  const Machine machine;
  const Setup setup{.samples = c.samples, .short_batch = c.short_batch};
  const Run called = train(machine.config(c.devices), setup, false);
  const Run compiled = train(machine.config(c.devices), setup, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.replays == static_cast<std::int64_t>(compiled.losses.size()) - kRehearsals - c.called);
  CHECK_THAT(compiled.reason, ContainsSubstring(c.reason));
  machine.check_clean();
}

TEST_CASE("what a replay cannot know of has the step recorded anew") {
  fake::reset();
  const Machine machine;
  enum Change { weight_decay, freeze, unfreeze, state, memory, drop_gradients };
  const auto change = GENERATE(weight_decay, freeze, unfreeze, state, memory, drop_gradients);
  const auto before = [change](int call, torch::nn::Sequential& net, torch::optim::Optimizer& inner) {
    at::Tensor weight = net->parameters().front();
    if (change == unfreeze && call == 0) weight.requires_grad_(false);
    if (call != 10) return;
    const torch::NoGradGuard no_grad;
    switch (change) {
      case weight_decay:
        static_cast<torch::optim::AdamWOptions&>(inner.param_groups()[0].options()).weight_decay(0.5);
        break;
      case freeze: weight.requires_grad_(false); break;
      case unfreeze: weight.requires_grad_(true); break;
      case state:
        for (auto& [parameter, its] : inner.state()) {
          auto& adamw = static_cast<torch::optim::AdamWParamState&>(*its);
          adamw.exp_avg_sq(at::zeros_like(adamw.exp_avg_sq()));
        }
        break;
      case memory: weight.set_data(weight.clone().mul_(2)); break;
      case drop_gradients: weight.mutable_grad().reset(); break;
    }
  };
  const Setup setup{.keep_gradients = change == drop_gradients, .before = before};
  CAPTURE(change);
  const Run called = train(machine.config({0}), setup, false), compiled = train(machine.config({0}), setup, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.reason == "");
  // One call more is called, with what has changed.
  CHECK(compiled.replays == static_cast<std::int64_t>(compiled.losses.size()) - kRehearsals - 1);
  machine.check_clean();
}

TEST_CASE("a step that would have to be recorded before each call is called, and says why") {
  fake::reset();
  const Machine machine;
  const Setup setup{.sgd = true, .one_cycle = true};  // moves the momentum
  const Run called = train(machine.config({0}), setup, false), compiled = train(machine.config({0}), setup, true);
  REQUIRE(compiled.losses.size() == called.losses.size());
  for (std::size_t i = 0; i < called.losses.size(); ++i)  // but for the learning rate's rounding
    CHECK(compiled.losses[i] == Approx(called.losses[i]).epsilon(1e-5));
  CHECK_THAT(compiled.reason, ContainsSubstring("before each call a setting of an optimizer"));
  CHECK(compiled.replays == 3);
}

TEST_CASE("a step that cannot be recorded leaves one that was recorded before it alone") {
  fake::reset();
  const Machine machine;
  std::vector<at::Tensor> drawn(2);
  for (const bool fails : {false, true})
    launch(machine.config({0, 0}), [&](Accelerator& a) {
      const auto ones = at::ones({100}, a.device());
      auto noise = a.compile_step([&] { return torch::dropout(ones, 0.5, true); });
      for (int i = 0; i < 5; ++i) noise();
      auto looks = a.compile_step([&] { return fails ? ones.sum().item<double>() > 0 : false; });
      for (int i = 0; i < 5; ++i) looks();
      const at::Tensor last = at::cat({noise(), torch::dropout(ones, 0.5, true), noise()});
      if (noise.replays() != 4) throw Error("the step was not replayed: " + noise.reason());
      if (looks.reason().empty() == fails) throw Error("the other one says '" + looks.reason() + "'");
      if (a.is_main()) drawn[fails ? 1 : 0] = last.cpu();
    });
  CHECK(at::equal(drawn[0], drawn[1]));
  CHECK_FALSE(at::equal(drawn[0].slice(0, 0, 100), drawn[0].slice(0, 200)));
  machine.check_clean();
}

TEST_CASE("a compiled step within no_sync, or within another one") {
  const Machine machine;
  launch(machine.config({0}), [&](Accelerator& a) {
    torch::nn::Linear net(4, 4);
    auto model = a.prepare(net);
    auto step = a.compile_step([&](const at::Tensor& in) { a.backward(model(in).sum()); });
    {
      const auto alone = a.no_sync(model);
      step(at::ones({2, 4}, a.device()));
      if (step.reason() != "gradients are not reduced within no_sync") throw Error(step.reason());
    }
    step(at::ones({2, 4}, a.device()));
    if (!step.reason().empty()) throw Error(step.reason());
  });
  CHECK_THAT(machine.error_of(machine.config({0}),
                              [](Accelerator& a) {
                                auto inner = a.compile_step([] {});
                                auto outer = a.compile_step([&] { inner(); });
                                outer();
                              }),
             ContainsSubstring("within another one"));
}

TEST_CASE("a learning rate that changes between calls counts in the next one") {
  fake::reset();
  const Machine machine;
  const Setup setup{.before = [](int call, torch::nn::Sequential&, torch::optim::Optimizer& inner) {
    inner.param_groups()[0].options().set_lr(call % 2 == 0 ? 0.25 : 0.03125);
  }};
  const Run called = train(machine.config({0, 0}), setup, false), compiled = train(machine.config({0, 0}), setup, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.replays > 0);
}

TEST_CASE("a step that cannot be recorded is called, on all ranks, and says why") {
  struct Case {
    std::string reason;
    std::function<void(Accelerator&)> within{};
    std::function<void(LaunchConfig&)> configure{};
    bool broken = false;
  };
  const auto looks = [](Accelerator& a) { at::ones({1}, a.device()).item<double>(); };
  const Case c = GENERATE_COPY(
      values<Case>({{"the step cannot be recorded: operation not permitted when stream is capturing", looks},
                    {"waits for the other ranks; call it outside of the step",
                     [](Accelerator& a) { a.gather(at::ones({1}, a.device())); }},
                    {"all_reduce(sum) of Float[1] (1 elements) waits for the other ranks",
                     [](Accelerator& a) { a.reduce(at::ones({1}, a.device())); }},
                    {"check_trigger waits for the other ranks", [](Accelerator& a) { a.check_trigger(); }},
                    {"barrier waits for the other ranks", [](Accelerator& a) { a.wait_for_everyone(); }},
                    {"another rank could not record", [looks](Accelerator& a) { a.is_main() ? void() : looks(a); }},
                    {"the step cannot be recorded: the fake's graphs are broken", {}, {}, true},
                    {"its optimizer has no step that can be recorded",
                     {},
                     [](LaunchConfig& config) { config.fused_optimizers = false; }},
                    {"under fp16", {}, [](LaunchConfig& config) { config.mixed_precision = Precision::fp16; }},
                    {"several micro-batches", {}, [](LaunchConfig& config) { config.gradient_accumulation_steps = 2; }},
                    {"updates are divided", {}, [](LaunchConfig& config) { config.sharding = Sharding::optimizer; }},
                    {"check_finite", {}, [](LaunchConfig& config) { config.gradient_reducer.check_finite = true; }}}));
  CAPTURE(c.reason);
  fake::reset();
  const Machine machine;
  machine.module->graphs_work = !c.broken;
  LaunchConfig config = machine.config({0, 1});
  if (c.configure) c.configure(config);
  const Setup setup{.dropout = 0.3, .within = c.within};
  const Run called = train(config, setup, false), compiled = train(config, setup, true);
  CHECK(compiled.replays == 0);
  CHECK_THAT(compiled.reason, ContainsSubstring(c.reason));
  CHECK(compiled.same_training(called));
  machine.check_clean();
}

TEST_CASE("CPU ranks call a compiled step") {
  const Run called = train({.cpu = 2}, {}, false), compiled = train({.cpu = 2}, {}, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.reason == "CPU ranks have no graphs");
}

TEST_CASE("an exception of the step's own is the call's, recorded or not") {
  fake::reset();
  const Machine machine;
  const int at_call = GENERATE(0, kRehearsals, kRehearsals + 1);
  std::string error;
  int calls = 0;
  const Setup setup{.within = [&](Accelerator&) {
    if (calls++ >= at_call) throw std::runtime_error("disk on fire");
  }};
  try {
    train(machine.config({0}), setup, true);
  } catch (const Error& failure) {
    error = failure.what();
  }
  // A step that has been recorded is not called any more.
  CHECK(error == (at_call <= kRehearsals ? "rank 0: disk on fire" : ""));
  machine.check_clean();
}

TEST_CASE("a step may take and return any nesting of tensors, or nothing") {
  fake::reset();
  const Machine machine;
  double sum = 0;
  int calls = 0;
  const std::string error = machine.error_of(machine.config({0}), [&](Accelerator& a) {
    auto total = at::zeros({2}, a.device());
    auto add = a.compile_step([&](const std::pair<at::Tensor, std::vector<at::Tensor>>& batch) {
      calls += 1;
      total.add_(batch.first).add_(batch.second[0]);
    });
    auto twice = a.compile_step([](const torch::data::Example<>& example) {
      return std::pair(example.data * 2, std::vector<at::Tensor>{example.target * 2});
    });
    std::vector<at::Tensor> kept;
    for (int i = 0; i < 8; ++i) {
      const auto value = at::full({2}, i, a.device());
      add(std::pair(value, std::vector<at::Tensor>{value}));
      kept.push_back(twice(torch::data::Example<>(value, value)).second[0]);
    }
    sum = total.sum().item<double>();
    for (int i = 0; i < 8; ++i)
      if (kept[static_cast<std::size_t>(i)].cpu().eq(2 * i).all().item<bool>() == false)
        throw Error("result " + std::to_string(i) + " was overwritten");
  });
  CHECK(error == "");
  CHECK(sum == 2 * 2 * 28);
  CHECK(calls == kRehearsals + 1);
  machine.check_clean();
}
