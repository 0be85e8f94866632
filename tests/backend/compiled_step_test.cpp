// Steps that are recorded and replayed, on a fake CUDA whose graphs do the recorded operators again, beside the same
// steps called.
#include "support/compiled_training.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::test::compiled;
using Catch::Matchers::ContainsSubstring;

TEST_CASE("a replayed step does what a called one does, to the bit") {
  struct Place {
    std::vector<int> devices;
    Transport transport = Transport::automatic;
  };
  const Place where = GENERATE(values<Place>({{{0}}, {{0, 0}}, {{0, 1}}, {{2, 5, 6}, Transport::nccl}}));
  const Call update_outside = [](Trainee& t, const at::Tensor& in, const at::Tensor& out, const auto& step) {
    const at::Tensor loss = step(in, out);
    t.optimizer.step();
    t.optimizer.zero_grad();
    return loss;
  };
  const Call window_outside = [](Trainee& t, const at::Tensor& in, const at::Tensor& out, const auto& step) {
    const auto window = t.a.accumulate();
    return step(in, out);
  };
  const Program program =
      GENERATE_COPY(values<Program>({{},
                                     {.name = "SGD with momentum", .make_optimizer = sgd(0.5)},
                                     {.name = "SGD", .make_optimizer = sgd(0)},
                                     {.name = "dropout", .dropout = 0.3},
                                     {.name = "a schedule", .step = step_with_schedule},
                                     {.name = "clipping", .step = step_that_clips},
                                     {.name = "gradients of zero", .step = step_that_sets_gradients_to_zero},
                                     {.name = "gradients dropped first", .step = step_that_drops_gradients_first},
                                     {.name = "update outside", .step = step_without_update, .call = update_outside},
                                     {.name = "window outside", .step = step_without_window, .call = window_outside}}));
  CAPTURE(where.devices, program.name);
  fake::reset();
  const Machine machine;
  const auto config = machine.config(where.devices, where.transport);
  const Run called = train(config, program, false), compiled = train(config, program, true);
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
    bool short_batch;  // on the last rank, in call 6
    std::string reason;
  };
  const Case c = GENERATE(values<Case>({{{0}, 100, 2, false, "tensor 0 has sizes [4, 6], and had [8, 6]"},
                                        {{0}, 96, 1, true, ""},
                                        {{0, 1}, 96, 1, true, ""}}));
  CAPTURE(c.devices, c.samples);
  fake::reset();
  const Machine machine;
  const Call with_short_batch = [&c](Trainee& t, at::Tensor in, at::Tensor out, const auto& step) {
    if (c.short_batch && t.call == 6 && t.a.is_last()) in = in.slice(0, 0, 4), out = out.slice(0, 0, 4);
    return step(in, out);
  };
  const Program program{.call = with_short_batch, .samples = c.samples};
  const Run called = train(machine.config(c.devices), program, false);
  const Run compiled = train(machine.config(c.devices), program, true);
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
  const auto apply_change = [change](Trainee& t) {
    at::Tensor weight = t.net->parameters().front();
    if (change == unfreeze && t.call == 0) weight.requires_grad_(false);
    if (t.call != 10) return;
    const torch::NoGradGuard no_grad;
    switch (change) {
      case weight_decay:
        static_cast<torch::optim::AdamWOptions&>(t.inner.param_groups()[0].options()).weight_decay(0.5);
        break;
      case freeze: weight.requires_grad_(false); break;
      case unfreeze: weight.requires_grad_(true); break;
      case state:
        for (auto& [parameter, its] : t.inner.state()) {
          auto& adamw = static_cast<torch::optim::AdamWParamState&>(*its);
          adamw.exp_avg_sq(at::zeros_like(adamw.exp_avg_sq()));
        }
        break;
      case memory: weight.set_data(weight.clone().mul_(2)); break;
      case drop_gradients: weight.mutable_grad().reset(); break;
    }
  };
  const Call with_change = [&](Trainee& t, const at::Tensor& in, const at::Tensor& out, const auto& step) {
    apply_change(t);
    return step(in, out);
  };
  const Program program{.step = change == drop_gradients ? step_that_sets_gradients_to_zero : plain_step,
                        .call = with_change};
  CAPTURE(change);
  const Run called = train(machine.config({0}), program, false), compiled = train(machine.config({0}), program, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.reason == "");
  // One call more is called, with what has changed.
  CHECK(compiled.replays == static_cast<std::int64_t>(compiled.losses.size()) - kRehearsals - 1);
  machine.check_clean();
}

TEST_CASE("a step that would have to be recorded before each call is called, and says why") {
  fake::reset();
  const Machine machine;
  const Call in_one_cycle = [](Trainee& t, const at::Tensor& in, const at::Tensor& out, const auto& step) {
    if (!t.cycle) t.cycle.emplace(t.inner, optim::OneCycleLROptions{.max_lr = {0.125}, .total_steps = 100});
    const at::Tensor loss = step(in, out);
    t.cycle->step();  // moves the momentum too
    return loss;
  };
  const Program program{.make_optimizer = sgd(0.5), .call = in_one_cycle};
  const Run called = train(machine.config({0}), program, false), compiled = train(machine.config({0}), program, true);
  CHECK(compiled.same_training(called));
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
  const std::string error = machine.error_of(machine.config({0}), [](Accelerator& a) {
    auto inner = a.compile_step([] {});
    auto outer = a.compile_step([&] { inner(); });
    outer();
  });
  CHECK_THAT(error, ContainsSubstring("within another one"));
}

TEST_CASE("a learning rate that changes between calls counts in the next one") {
  fake::reset();
  const Machine machine;
  const Call with_other_rates = [](Trainee& t, const at::Tensor& in, const at::Tensor& out, const auto& step) {
    t.inner.param_groups()[0].options().set_lr(t.call % 2 == 0 ? 0.25 : 0.03125);
    return step(in, out);
  };
  const Program program{.call = with_other_rates};
  const Run called = train(machine.config({0, 0}), program, false),
            compiled = train(machine.config({0, 0}), program, true);
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
  const Program program{.dropout = 0.3, .step = c.within ? step_with(c.within) : plain_step};
  const Run called = train(config, program, false), compiled = train(config, program, true);
  CHECK(compiled.replays == 0);
  CHECK_THAT(compiled.reason, ContainsSubstring(c.reason));
  CHECK(compiled.same_training(called));
  machine.check_clean();
}

TEST_CASE("a step with parts that are computed again is called, and says why") {
  const double dropout = GENERATE(0.0, 0.3);
  const std::vector<int> devices = GENERATE(std::vector<int>{0}, std::vector<int>{0, 1});
  fake::reset();
  const Machine machine;
  const Program program{.dropout = dropout, .step = [](Trainee& t, const at::Tensor& in, const at::Tensor& out) {
                          const auto window = t.a.accumulate(t.model);
                          const auto loss = (nn::checkpoint(t.model, in) - out).square().mean();
                          t.a.backward(loss);
                          t.optimizer.step();
                          t.optimizer.zero_grad();
                          return loss.detach();
                        }};
  const auto config = machine.config(devices);
  const Run called = train(config, program, false), compiled = train(config, program, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.replays == 0);
  CHECK_THAT(compiled.reason, ContainsSubstring("cannot be recorded: nn::checkpoint"));
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
  const Program program{.step = step_with([&](Accelerator&) {
                          if (calls++ >= at_call) throw std::runtime_error("disk on fire");
                        })};
  try {
    train(machine.config({0}), program, true);
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

TEST_CASE("a step of float64 parameters is called, as a graph would round its learning rate") {
  fake::reset();
  const Machine machine;
  const Program program{.make_optimizer = GENERATE(MakeOptimizer(adamw), sgd(0), sgd(0.5)), .type = at::kDouble};
  const Run called = train(machine.config({0}), program, false), compiled = train(machine.config({0}), program, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.replays == 0);
  CHECK_THAT(compiled.reason, ContainsSubstring("for float32 parameters have"));
}
