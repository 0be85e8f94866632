// What a training that goes on takes from its checkpoint, and what from the program.
#include <torch/optim/adam.h>
#include <torch/optim/schedulers/step_lr.h>

#include "checkpoint/state_training.h"
#include "optim/state_dict.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "tandem/io/pickle_file.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::test::states;

namespace {

using Rates = std::vector<double>;

double lr_of(const torch::optim::Optimizer& optimizer) { return optimizer.param_groups()[0].options().get_lr(); }

// A training of one layer with momentum and a schedule that is made of the optimizer.
struct Scheduled {
  explicit Scheduled(Accelerator& accelerator, const optim::SchedulerFactory& make, double lr = 0.1,
                     double momentum = 0.9)
      : inner(net->parameters(), torch::optim::SGDOptions(lr).momentum(momentum)),
        schedule(make(inner)),
        model(accelerator.prepare(net)),
        optimizer(accelerator.prepare(inner)),
        scheduler(accelerator.prepare(*schedule)),
        accelerator_(accelerator) {}

  // Rates that the updates were made with.
  Rates train(int steps) {
    Rates rates;
    for (int i = 0; i < steps; ++i) {
      accelerator_.backward(model(at::ones({1, 3})).square().sum());
      rates.push_back(lr_of(inner));
      optimizer.step();
      optimizer.zero_grad();
      scheduler.step();
    }
    return rates;
  }

  torch::nn::Linear net{3, 2};
  torch::optim::SGD inner;
  std::unique_ptr<optim::LRScheduler> schedule;
  nn::Model<torch::nn::LinearImpl> model;
  optim::AcceleratedOptimizer optimizer;
  optim::AcceleratedScheduler scheduler;

 private:
  Accelerator& accelerator_;
};

optim::SchedulerFactory cosine(std::int64_t total) { return optim::stage<optim::CosineAnnealingLR>({.T_max = total}); }

Rates rates_of(int ranks, const optim::SchedulerFactory& make, int steps) {
  return on_ranks<Rates>(ranks, [&](Accelerator& accelerator) { return Scheduled(accelerator, make).train(steps); })[0];
}

void save_after(const std::string& directory, int ranks, const optim::SchedulerFactory& make, int steps) {
  run_ranks(ranks, [&](Accelerator& accelerator) {
    Scheduled training(accelerator, make);
    training.train(steps);
    accelerator.save_state(directory);
  });
}

}  // namespace

TEST_CASE("a longer training goes on at the longer schedule's rates") {
  for (const int ranks : {1, 2})
    for (const auto& [before, now] :
         {std::pair(cosine(5), cosine(10)),
          std::pair(optim::stage<optim::PolynomialLR>({.total_iters = 5}),
                    optim::stage<optim::PolynomialLR>({.total_iters = 10})),
          std::pair(optim::stage<optim::StepLR>({.step_size = 2}), optim::stage<optim::StepLR>({.step_size = 4})),
          std::pair(optim::stage<optim::OneCycleLR>({.max_lr = {0.5}, .total_steps = 6}),
                    optim::stage<optim::OneCycleLR>({.max_lr = {0.5}, .total_steps = 20}))}) {
      const TempDir dir;
      const Rates straight = rates_of(ranks, now, 10);
      save_after(dir / "state", ranks, before, 5);
      const auto resumed = on_ranks<Rates>(ranks, [&, &now = now](Accelerator& accelerator) {
        Scheduled training(accelerator, now);
        accelerator.load_state(dir / "state");
        Rates rates = training.train(5);
        const auto& options = static_cast<torch::optim::SGDOptions&>(training.inner.param_groups()[0].options());
        rates.push_back(options.momentum());
        return rates;
      });
      const auto whole_momentum = on_ranks<double>(ranks, [&, &now = now](Accelerator& accelerator) {
        Scheduled training(accelerator, now);
        training.train(10);
        return static_cast<torch::optim::SGDOptions&>(training.inner.param_groups()[0].options()).momentum();
      });
      CHECK(Rates(resumed.back().begin(), resumed.back().end() - 1) == Rates(straight.begin() + 5, straight.end()));
      CHECK(resumed.back().back() == whole_momentum[0]);
      CHECK(resumed.front() == resumed.back());
    }
}

TEST_CASE("the options of optimizers are the checkpoint's, or the program's, as load_state is told") {
  const auto after_load = [](const TempDir& dir, const LoadStateOptions& options) {
    return on_ranks<Rates>(2, [&](Accelerator& accelerator) {
      Scheduled training(accelerator, cosine(20), 0.01, 0.5);
      accelerator.load_state(dir / "state", options);
      const auto& group = static_cast<torch::optim::SGDOptions&>(training.inner.param_groups()[0].options());
      Rates seen{group.momentum()};
      for (const double rate : training.train(3)) seen.push_back(rate);
      const auto found = training.inner.state().find(training.net->weight.unsafeGetTensorImpl());
      seen.push_back(found == training.inner.state().end() ? 0.0 : 1.0);
      return seen;
    })[1];
  };
  const TempDir dir;
  save_after(dir / "state", 2, cosine(20), 10);
  const Rates kept = after_load(dir, {});
  const Rates own = after_load(dir, {.optimizer_options = SettingsOf::program});
  CHECK(kept[0] == 0.9);
  CHECK(kept[1] == Approx(0.05));
  CHECK(own[0] == 0.5);
  CHECK(own[1] == Approx(0.005));
  for (std::size_t i = 1; i < 4; ++i) CHECK(own[i] == Approx(kept[i] / 10));
  CHECK(own.back() == 1.0);  // the momentum buffers are the checkpoint's
}

TEST_CASE("LibTorch's scheduler goes on at the checkpoint's rate, or at its own over the program's learning rate") {
  const auto run = [](int steps, const std::string& save_to, const std::string& load_from, SettingsOf whose) {
    return on_ranks<Rates>(2, [&](Accelerator& accelerator) {
      torch::nn::Linear net(3, 2);
      torch::optim::SGD inner(net->parameters(), 0.1);
      torch::optim::StepLR step(inner, load_from.empty() ? 2 : 4, 0.5);
      auto [model, optimizer, scheduler] = accelerator.prepare(net, inner, step);
      if (!load_from.empty()) accelerator.load_state(load_from, {.optimizer_options = whose});
      Rates rates;
      for (int i = 0; i < steps; ++i) {
        accelerator.backward(model(at::ones({1, 3})).sum());
        optimizer.step();
        scheduler.step();
        rates.push_back(lr_of(inner));
      }
      if (!save_to.empty()) accelerator.save_state(save_to);
      return rates;
    })[0];
  };
  const TempDir dir;
  CHECK(run(5, dir / "state", "", {}) == Rates{0.1, 0.1, 0.05, 0.05, 0.025});
  CHECK(run(1, "", dir / "state", SettingsOf::checkpoint) == Rates{0.025});
  CHECK(run(1, "", dir / "state", SettingsOf::program) == Rates{0.05});
}

TEST_CASE("the factors of the scaler are the checkpoint's, or the program's, and its scale the checkpoint's") {
  const TempDir dir;
  LaunchConfig config;
  config.mixed_precision = Precision::fp16;
  config.grad_scaler = {.init_scale = 8, .growth_interval = 2};
  run_ranks(1, config, [&](Accelerator& accelerator) {
    Scheduled training(accelerator, cosine(20));
    training.train(4);
    accelerator.save_state(dir / "state");
  });
  config.grad_scaler = {.init_scale = 64, .growth_interval = 50};
  for (const SettingsOf whose : {SettingsOf::checkpoint, SettingsOf::program})
    run_ranks(1, config, [&](Accelerator& accelerator) {
      Scheduled training(accelerator, cosine(20));
      accelerator.load_state(dir / "state", {.optimizer_options = whose});
      const auto state = accelerator.grad_scaler()->state();
      if (state.scale <= 8 || state.scale >= 64) throw std::logic_error("another scale");
      if (state.growth_interval != (whose == SettingsOf::program ? 50 : 2)) throw std::logic_error("another interval");
    });
}

TEST_CASE("two schedules of one optimizer go on together, and cannot be told apart over another learning rate") {
  const TempDir dir;
  const auto run = [&](bool load, int steps, LoadStateOptions options = {}) {
    return on_ranks<Rates>(1, [&](Accelerator& accelerator) {
      torch::nn::Linear net(3, 2);
      torch::optim::SGD inner(net->parameters(), 0.1);
      optim::ExponentialLR decay(inner, {.gamma = 0.9});
      optim::StepLR step(inner, {.step_size = 3});
      auto [model, optimizer, a, b] = accelerator.prepare(net, inner, decay, step);
      if (load) accelerator.load_state(dir / "state", options);
      Rates rates;
      for (int i = 0; i < steps; ++i) {
        accelerator.backward(model(at::ones({1, 3})).sum());
        optimizer.step();
        a.step();
        b.step();
        rates.push_back(lr_of(inner));
        if (!load && i == 3) accelerator.save_state(dir / "state");
      }
      return rates;
    })[0];
  };
  const Rates straight = run(false, 8);
  CHECK(run(true, 4) == Rates(straight.begin() + 4, straight.end()));
  CHECK_THROWS_WITH(run(true, 4, {.optimizer_options = SettingsOf::program}),
                    ContainsSubstring("several schedulers change the rates of one optimizer"));
}

// ---- whose state is whose

namespace {

using Parameters = std::vector<at::Tensor>;

struct Twins : torch::nn::Module {
  torch::nn::Linear first{3, 3}, second{3, 3};
  Twins() {
    register_module("first", first);
    register_module("second", second);
  }
  at::Tensor forward(const at::Tensor& input) { return second(first(input).tanh()); }
};

// Trains with the parameters in an order, from a checkpoint and to one.
template <class Its>
std::vector<at::Tensor> train_twins(int ranks, const std::function<Parameters(Twins&)>& order, int steps,
                                    const std::string& load_from, const std::string& save_to) {
  return on_ranks<std::vector<at::Tensor>>(ranks, [&](Accelerator& accelerator) {
    const auto net = std::make_shared<Twins>();
    {
      const torch::NoGradGuard no_grad;
      double value = 0.1;
      for (auto& parameter : net->parameters())
        parameter.copy_(at::sin(at::arange(parameter.numel()) * (value += 1)).view_as(parameter));
    }
    Its inner(order(*net));
    auto model = accelerator.prepare(net);
    auto optimizer = accelerator.prepare(inner);
    if (!load_from.empty()) accelerator.load_state(load_from);
    for (int i = 0; i < steps; ++i) {
      accelerator.backward(model(at::ones({1, 3})).square().sum());
      optimizer.step();
      optimizer.zero_grad();
    }
    if (!save_to.empty()) accelerator.save_state(save_to);
    std::vector<at::Tensor> weights;
    for (const auto& parameter : net->parameters()) weights.push_back(parameter.detach().clone());
    return weights;
  })[0];
}

struct Momentum : torch::optim::SGD {
  explicit Momentum(Parameters parameters) : SGD(std::move(parameters), torch::optim::SGDOptions(0.1).momentum(0.9)) {}
};

Parameters in_order(Twins& net) { return {net.first->weight, net.first->bias, net.second->weight, net.second->bias}; }
Parameters swapped(Twins& net) { return {net.second->weight, net.second->bias, net.first->weight, net.first->bias}; }

}  // namespace

TEST_CASE("an optimizer's state goes to the parameters of its names, also when they are given in another order") {
  for (const int ranks : {1, 2}) {
    const TempDir dir;
    const auto whole = train_twins<torch::optim::Adam>(ranks, in_order, 6, "", "");
    train_twins<torch::optim::Adam>(ranks, in_order, 3, "", dir / "state");
    CHECK(same_bits(train_twins<torch::optim::Adam>(ranks, swapped, 3, dir / "state", ""), whole));
    CHECK(same_bits(train_twins<torch::optim::Adam>(ranks, in_order, 3, dir / "state", ""), whole));
  }
}

TEST_CASE("a class of the program's that gets its parameters in another order is an error") {
  const TempDir dir;
  train_twins<Momentum>(2, in_order, 3, "", dir / "state");
  CHECK_THROWS_WITH(train_twins<Momentum>(2, swapped, 3, dir / "state", ""),
                    ContainsSubstring("are in another order than when it was saved"));
}

TEST_CASE("parameters of other names, or in other groups, are an error that names one") {
  using torch::optim::OptimizerParamGroup;
  const auto names = [](const Parameters& known) {
    return [known](const at::Tensor& parameter) {
      for (std::size_t i = 0; i < known.size(); ++i)
        if (known[i].is_same(parameter)) return "p" + std::to_string(i);
      return std::string();
    };
  };
  const Parameters p{at::zeros({2}), at::zeros({2}), at::zeros({2})};
  torch::optim::Adam saved({OptimizerParamGroup({p[0]}), OptimizerParamGroup({p[1]})}),
      other_groups({OptimizerParamGroup({p[1]}), OptimizerParamGroup({p[0]})}),
      other_names({OptimizerParamGroup({p[0]}), OptimizerParamGroup({p[2]})});
  for (const auto& parameter : p) parameter.mutable_grad() = at::ones({2});
  saved.step();
  const auto state = optim::state_dict(saved, {}, {.names = names(p)});
  const auto error = [&](torch::optim::Optimizer& optimizer) {
    return error_of<CheckpointError>([&] { optim::prepare_load(optimizer, state, {.names = names(p)}); });
  };
  CHECK_THAT(error(other_groups), ContainsSubstring("parameter 'p1' was in parameter group 1"));
  CHECK_THAT(error(other_names), ContainsSubstring("parameter 'p2'"));
  CHECK(error(saved).empty());
  // Somebody's own names, or none: by position.
  const auto foreign = optim::state_dict(saved, {}, {.names = [](const at::Tensor&) { return std::string("x"); }});
  CHECK(error_of<CheckpointError>([&] { optim::prepare_load(other_groups, foreign, {.names = names(p)}); }).empty());
  const auto without = optim::state_dict(saved);
  CHECK(error_of<CheckpointError>([&] { optim::prepare_load(other_groups, without, {.names = names(p)}); }).empty());
}

TEST_CASE("a checkpoint has the names of the parameters where PyTorch has them") {
  const TempDir dir;
  train_twins<torch::optim::Adam>(2, swapped, 1, "", dir / "state");
  const auto file = io::read_pickle(dir / "state/optimizer.bin").toGenericDict();
  const auto group = file.at("param_groups").toListRef()[0].toGenericDict();
  std::vector<std::string> names;
  for (const c10::IValue& name : group.at("param_names").toListRef()) names.push_back(name.toStringRef());
  CHECK(names == std::vector<std::string>{"second.weight", "second.bias", "first.weight", "first.bias"});
}

TEST_CASE("parameters of several models in one optimizer are told apart by name") {
  const TempDir dir;
  const auto run = [&](bool swap, int steps, bool load) {
    return on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
      torch::nn::Linear a(2, 2), b(2, 2);
      {
        const torch::NoGradGuard no_grad;
        a->weight.fill_(0.3), a->bias.fill_(0.1), b->weight.fill_(-0.7), b->bias.fill_(0.9);
      }
      Parameters parameters = swap ? b->parameters() : a->parameters();
      for (const auto& parameter : (swap ? a : b)->parameters()) parameters.push_back(parameter);
      torch::optim::Adam inner(parameters, 0.05);
      auto [first, second, optimizer] = accelerator.prepare(a, b, inner);
      if (load) accelerator.load_state(dir / "state");
      for (int i = 0; i < steps; ++i) {
        accelerator.backward(second(first(at::ones({1, 2}))).square().sum());
        optimizer.step();
        optimizer.zero_grad();
      }
      if (!load && steps == 2) accelerator.save_state(dir / "state");
      return std::vector<at::Tensor>{a->weight.detach().clone(), b->weight.detach().clone()};
    })[0];
  };
  const auto whole = run(false, 5, false);
  run(false, 2, false);
  CHECK(same_bits(run(true, 3, true), whole));
}
