// Divided updates and shared weights beside ranks that have everything by themselves: the same bits.
#include <algorithm>
#include <functional>
#include <map>
#include <sstream>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/serialize/archive.h>

#include "optim/accelerated_handles.h"
#include "optim/sharded_optimizer.h"
#include "optim/small_net.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;
using torch::optim::OptimizerParamGroup;

namespace {

using Optimizer = std::unique_ptr<torch::optim::Optimizer>;
using Groups = std::vector<OptimizerParamGroup>;

struct Kind {
  const char* name;
  std::function<Optimizer(Groups)> make;
};

const Kind kKinds[] = {
    {"SGD",
     [](Groups g) -> Optimizer {
       return std::make_unique<torch::optim::SGD>(g, torch::optim::SGDOptions(0.1).momentum(0.9).nesterov(true));
     }},
    {"Adam",
     [](Groups g) -> Optimizer {
       return std::make_unique<torch::optim::Adam>(g, torch::optim::AdamOptions(0.01).amsgrad(true));
     }},
    {"AdamW", [](Groups g) -> Optimizer { return std::make_unique<torch::optim::AdamW>(g, 0.01); }},
    {"RMSprop",
     [](Groups g) -> Optimizer {
       return std::make_unique<torch::optim::RMSprop>(g, torch::optim::RMSpropOptions(0.01).momentum(0.5));
     }},
    {"Adagrad", [](Groups g) -> Optimizer { return std::make_unique<torch::optim::Adagrad>(g, 0.05); }}};

Groups two_groups(const torch::nn::Sequential& net) {
  const auto parameters = net->parameters();
  return {OptimizerParamGroup({parameters.begin(), parameters.begin() + 2}),
          OptimizerParamGroup({parameters.begin() + 2, parameters.end()})};
}

struct Ended {
  std::vector<at::Tensor> weights;
  std::vector<const void*> memory;                        // of the weights
  std::vector<const void*> state_memory;                  // of the first tensor of each parameter's state
  std::vector<std::map<std::string, std::string>> state;  // as saved
  bool divided = false;
};

// The state of each parameter as it is saved: what a name holds, tensors as text of their numbers.
using SavedState = std::vector<std::map<std::string, std::string>>;

SavedState saved_state(torch::optim::Optimizer& optimizer, const std::vector<at::Tensor>& parameters) {
  SavedState all;
  for (const at::Tensor& parameter : parameters) {
    const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
    auto& of_parameter = all.emplace_back();
    if (found == optimizer.state().end()) continue;
    torch::serialize::OutputArchive out;
    found->second->serialize(out);
    std::stringstream stream;
    out.save_to(stream);
    torch::serialize::InputArchive in;
    in.load_from(stream);
    for (const std::string& key : in.keys()) {
      c10::IValue value;
      in.read(key, value);
      std::ostringstream text;
      text.precision(17);
      if (value.isTensor() && value.toTensor().defined()) {
        const at::Tensor numbers = value.toTensor().to(at::kDouble).contiguous().view(-1);
        for (std::int64_t i = 0; i < numbers.numel(); ++i) text << numbers.data_ptr<double>()[i] << ' ';
      } else {
        text << value;
      }
      of_parameter[key] = text.str();
    }
  }
  return all;
}

struct Run {
  int ranks = 2;
  Sharding sharding = Sharding::automatic;
  std::function<Optimizer(Groups)> make = kKinds[2].make;
  bool fused = true;
  int accumulation = 1;
  int steps = 8;
  std::function<void(const std::string&)> on_warning = {};
  std::function<void(torch::nn::Sequential&, int rank, int step)> before_backward = [](auto&, int, int) {};
  std::function<void(torch::nn::Sequential&, int rank, int step)> after_step = [](auto&, int, int) {};
  std::function<void(torch::nn::Sequential&, torch::optim::Optimizer&, int rank, int step)> before_step =
      [](auto&, auto&, int, int) {};
};

std::vector<Ended> train(const Run& run) {
  const LaunchConfig config{.gradient_accumulation_steps = run.accumulation,
                            .fused_optimizers = run.fused,
                            .sharding = run.sharding,
                            .on_warning = run.on_warning};
  return on_ranks<Ended>(run.ranks, config, [&](Accelerator& accelerator) {
    auto net = make_net();
    const auto inner = run.make(two_groups(net));
    auto [model, optimizer] = accelerator.prepare(net, *inner);
    for (int step = 0; step < run.steps; ++step) {
      auto window = accelerator.accumulate(model);
      const auto loss = model->forward(batch_of(accelerator.rank(), step)).pow(2).mean();
      run.before_backward(net, accelerator.rank(), step);
      accelerator.backward(loss);
      accelerator.clip_grad_norm_(model, 0.5);
      run.before_step(net, *inner, accelerator.rank(), step);
      optimizer.step();
      run.after_step(net, accelerator.rank(), step);
      optimizer.zero_grad();
    }
    Ended ended;
    for (const auto& parameter : net->parameters()) {
      ended.weights.push_back(parameter.detach().clone());
      ended.memory.push_back(parameter.const_data_ptr());
      const auto found = inner->state().find(parameter.unsafeGetTensorImpl());
      const auto* adam =
          found == inner->state().end() ? nullptr : dynamic_cast<torch::optim::AdamWParamState*>(found->second.get());
      ended.state_memory.push_back(adam ? adam->exp_avg().const_data_ptr() : nullptr);
    }
    accelerator.wait_for_everyone();
    ended.state = saved_state(*inner, net->parameters());
    const auto* sharded = optim::sharded_of(optimizer);
    ended.divided = sharded && sharded->divided();
    return ended;
  });
}

bool same_weights(const std::vector<Ended>& a, const std::vector<Ended>& b) {
  for (std::size_t rank = 0; rank < a.size(); ++rank)
    for (std::size_t i = 0; i < a[rank].weights.size(); ++i)
      if (!at::equal(a[rank].weights[i], b[rank].weights[i])) return false;
  return true;
}

Run with_sharding(Run run, Sharding sharding) {
  run.sharding = sharding;
  return run;
}

}  // namespace

TEST_CASE("divided updates and shared weights give the bits of whole ones, with the state complete on every rank") {
  const auto& kind = kKinds[GENERATE(0, 1, 2, 3, 4)];
  Run run{
      .ranks = GENERATE(2, 3, 4), .make = kind.make, .fused = GENERATE(true, false), .accumulation = GENERATE(1, 3)};
  CAPTURE(kind.name, run.ranks, run.fused, run.accumulation);
  const auto whole = train(with_sharding(run, Sharding::none));
  for (const Sharding sharding : {Sharding::optimizer, Sharding::automatic}) {
    const auto ended = train(with_sharding(run, sharding));
    CHECK(same_weights(ended, whole));
    for (const auto& rank : ended) {
      CHECK(rank.divided);
      for (std::size_t i = 0; i < rank.state.size(); ++i) CHECK(rank.state[i] == whole[0].state[i]);
    }
  }
}

TEST_CASE("ranks have one copy of the state, and of the weights") {
  const Sharding sharding = GENERATE(Sharding::none, Sharding::optimizer, Sharding::automatic);
  const auto ended = train({.ranks = 3, .sharding = sharding});
  CHECK((ended[0].memory == ended[2].memory) == (sharding == Sharding::automatic));
  CHECK((ended[0].state_memory == ended[2].state_memory) == (sharding != Sharding::none));
}

TEST_CASE("weights that others write to on all ranks alike are each rank's own, and the others stay shared") {
  const bool in_forward = GENERATE(true, false);
  const std::size_t written = in_forward ? 5 : 2;  // 5 is a bias: backward does not need it
  Run run{.ranks = 3};
  (in_forward ? run.before_backward : run.after_step) = [written](torch::nn::Sequential& net, int, int) {
    const at::NoGradGuard no_grad;
    net->parameters()[written].clamp_(-0.05, 0.05);
  };
  const auto ended = train(run);
  CHECK(same_weights(ended, train(with_sharding(run, Sharding::none))));
  CHECK(ended[0].divided);
  for (std::size_t i = 0; i < 6; ++i) CHECK((ended[0].memory[i] == ended[1].memory[i]) == (i != written));
}

TEST_CASE("ranks whose weights differ, from the beginning or later, go on with what each has, and that is told once") {
  const int since = GENERATE(0, 1, 4);
  Run run{.ranks = 2};
  run.before_backward = [&](torch::nn::Sequential& net, int rank, int step) {
    const at::NoGradGuard no_grad;
    if (step == since) net->parameters()[5].add_(rank);
  };
  std::vector<std::string> warnings;
  run.on_warning = [&](const std::string& warning) { warnings.push_back(warning); };
  const auto ended = train(run);
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("parameter 4.bias has other values on rank 1 than on rank 0"));
  warnings.clear();
  CHECK(same_weights(ended, train(with_sharding(run, Sharding::none))));
  CHECK(warnings.size() == (since == 0 ? 1 : 0));  // where nothing is divided only the first reduction looks
  CHECK_FALSE(at::equal(ended[0].weights[5], ended[1].weights[5]));
}

TEST_CASE("options that differ between ranks: each rank steps by its own, as without division, and that is told once") {
  const auto& kind = kKinds[GENERATE(0, 1, 2, 3, 4)];
  const int since = GENERATE(0, 3), rank_with_others = GENERATE(0, 2);
  CAPTURE(kind.name, since, rank_with_others);
  Run run{.ranks = 3, .make = kind.make};
  run.before_step = [&](auto&, torch::optim::Optimizer& optimizer, int rank, int step) {
    if (step >= since && rank == rank_with_others) optimizer.param_groups()[1].options().set_lr(0.003);
  };
  std::vector<std::string> warnings;
  run.on_warning = [&](const std::string& warning) { warnings.push_back(warning); };
  for (const Sharding sharding : {Sharding::automatic, Sharding::optimizer}) {
    warnings.clear();
    const auto ended = train(with_sharding(run, sharding));
    REQUIRE(warnings.size() == 1);
    CHECK_THAT(warnings[0], ContainsSubstring("lr of group 1") && ContainsSubstring("0.003"));
    CHECK_FALSE(ended[0].divided);
    CHECK(same_weights(ended, train(with_sharding(run, Sharding::none))));
  }
}

namespace {

struct GradientWay {
  const char* name;
  std::function<void(at::Tensor& gradient, float number)> write;
};

const GradientWay kGradientWays[] = {
    {"an operator", [](at::Tensor& g, float number) { g.add_(number); }},
    {"data()", [](at::Tensor& g, float number) { g.data().mul_(number); }},
    {"a pointer", [](at::Tensor& g, float number) { g.data_ptr<float>()[0] = number; }},
    {"another tensor", [](at::Tensor& g, float number) { g = at::full_like(g, number); }},
    {"a sparse tensor", [](at::Tensor& g, float number) { g = (g * number).to_sparse(); }},
    {"a transposed one",
     [](at::Tensor& g, float number) {
       g = at::empty_strided(g.sizes(), {1, g.size(0)}, g.options()).copy_(g * number);
     }},
    {"none", [](at::Tensor& g, float) { g.reset(); }}};

}  // namespace

TEST_CASE("gradients that the program writes before a step count for the rank that has written them") {
  for (const GradientWay& way : kGradientWays)
    for (const int since : {0, 4})
      for (const int who : {-2, -1, 0, 1}) {  // -2: all ranks alike, -1: all, each something else
        const bool same = who == -2 || (who == -1 && std::string(way.name) == "none");
        CAPTURE(way.name, since, who);
        Run run{.ranks = 2, .make = [](Groups g) -> Optimizer { return std::make_unique<torch::optim::SGD>(g, 0.1); }};
        run.before_step = [&](torch::nn::Sequential& net, auto&, int rank, int step) {
          if (step != since || (who >= 0 && who != rank)) return;
          const at::NoGradGuard no_grad;
          way.write(net->parameters()[2].mutable_grad(), who == -1 ? 0.5F + static_cast<float>(rank) : 0.5F);
        };
        std::vector<std::string> warnings;
        run.on_warning = [&](const std::string& warning) { warnings.push_back(warning); };
        const auto whole = train(with_sharding(run, Sharding::none));
        for (const Sharding sharding : {Sharding::automatic, Sharding::optimizer}) {
          warnings.clear();
          const auto ended = train(with_sharding(run, sharding));
          CHECK(same_weights(ended, whole));
          CHECK(ended[0].divided == same);
          CHECK(warnings.size() == (same ? 0 : 1));
          if (!same && !warnings.empty())
            CHECK_THAT(warnings[0], ContainsSubstring("the gradient of 2.weight is another one on rank 1"));
        }
      }
}

namespace {

// A complex or half weight beside float ones.
struct MixedImpl : torch::nn::Module {
  explicit MixedImpl(at::ScalarType type) {
    other = register_parameter("other", at::linspace(0.5, 1, 6).to(type));
    net = register_module("net", make_net());
  }
  at::Tensor forward(const at::Tensor& x) { return net->forward(x) * other.abs().to(at::kFloat).mean(); }
  at::Tensor other;
  torch::nn::Sequential net{nullptr};
};
TORCH_MODULE(Mixed);

}  // namespace

TEST_CASE("which step an optimizer takes does not depend on how its parameters are divided") {
  const auto type = GENERATE(at::kComplexFloat, at::kHalf, at::kBFloat16);
  const int ranks = GENERATE(2, 3, 4);
  // AdamW's eps is 0 in float16: its weights would be NaN.
  const auto& kind = kKinds[type == at::kHalf ? 0 : GENERATE(0, 2)];
  const auto weights = [&](Sharding sharding) {
    return on_ranks<std::vector<at::Tensor>>(ranks, {.sharding = sharding}, [&](Accelerator& accelerator) {
      torch::manual_seed(3);
      Mixed net(type);
      const auto inner = kind.make({OptimizerParamGroup(net->parameters())});
      auto [model, optimizer] = accelerator.prepare(net, *inner);
      for (int step = 0; step < 5; ++step) {
        accelerator.backward(model(batch_of(accelerator.rank(), step)).pow(2).mean());
        optimizer.step();
        optimizer.zero_grad();
      }
      std::vector<at::Tensor> copies;
      for (const auto& parameter : net->parameters()) copies.push_back(parameter.detach().clone());
      return copies;
    });
  };
  const auto whole = weights(Sharding::none), shared = weights(Sharding::automatic);
  for (std::size_t i = 0; i < whole[0].size(); ++i) {
    CAPTURE(type, ranks, kind.name, i);
    REQUIRE(whole[0][i].abs().isfinite().all().item<bool>());
    CHECK(at::equal(whole[0][i], shared[0][i]));
  }
}

namespace {

struct OwnSgd : torch::optim::SGD {
  using SGD::SGD;
};

}  // namespace

TEST_CASE("other classes of optimizers, and parameters of no prepared model, are not divided") {
  const bool other_class = GENERATE(true, false);
  const auto divided = on_ranks<bool>(2, [&](Accelerator& accelerator) {
    auto net = make_net();
    auto parameters = net->parameters();
    if (!other_class) parameters.push_back(torch::zeros({3}, at::requires_grad()));
    OwnSgd own(parameters, 0.1);
    torch::optim::SGD sgd(parameters, 0.1);
    auto model = accelerator.prepare(net);
    auto optimizer = other_class ? accelerator.prepare(own) : accelerator.prepare(sgd);
    for (int step = 0; step < 3; ++step) {
      accelerator.backward(model->forward(batch_of(accelerator.rank(), step)).pow(2).mean());
      optimizer.step();
      optimizer.zero_grad();
    }
    return optim::sharded_of(optimizer)->divided();
  });
  CHECK(divided == std::vector<bool>{false, false});
}

TEST_CASE("several optimizers of one model, one of which cannot be divided, and one that comes later") {
  const bool all_can = GENERATE(true, false);
  const auto weights = [&](Sharding sharding) {
    return on_ranks<std::vector<at::Tensor>>(3, {.sharding = sharding}, [&](Accelerator& accelerator) {
      auto net = make_net();
      const auto groups = two_groups(net);
      torch::optim::AdamW first(groups[0].params(), 0.01);
      torch::optim::SGD plain(groups[1].params(), 0.1);
      OwnSgd own(groups[1].params(), 0.1);
      auto model = accelerator.prepare(net);
      auto a = accelerator.prepare(first);
      auto b = all_can ? accelerator.prepare(plain) : accelerator.prepare(own);
      for (int step = 0; step < 8; ++step) {
        accelerator.backward(model->forward(batch_of(accelerator.rank(), step)).pow(2).mean());
        a.step();
        if (step > 3) b.step();
        a.zero_grad();
        b.zero_grad();
      }
      std::vector<at::Tensor> copies;
      for (const auto& parameter : net->parameters()) copies.push_back(parameter.detach().clone());
      return copies;
    });
  };
  const auto whole = weights(Sharding::none), shared = weights(Sharding::automatic);
  for (std::size_t rank = 0; rank < 3; ++rank)
    for (std::size_t i = 0; i < whole[rank].size(); ++i) CHECK(at::equal(whole[rank][i], shared[rank][i]));
}

TEST_CASE("averages are swapped in on one rank while the others train with the shared weights") {
  const auto weights = [](Sharding sharding) {
    return on_ranks<at::Tensor>(2, {.sharding = sharding}, [](Accelerator& accelerator) {
      auto net = make_net();
      torch::optim::AdamW adamw(net->parameters(), 0.01);
      auto [model, optimizer] = accelerator.prepare(net, adamw);
      optim::ExponentialMovingAverage average(model, {.decay = 0.5});
      at::Tensor outputs = at::zeros({});
      for (int step = 0; step < 6; ++step) {
        accelerator.backward(model->forward(batch_of(accelerator.rank(), step)).pow(2).mean());
        optimizer.step();
        optimizer.zero_grad();
        average.update();
        if (accelerator.is_main()) {
          const at::NoGradGuard no_grad;
          const auto swapped = average.swap_in();
          outputs = outputs + model->forward(batch_of(0, 100)).sum();
        }
      }
      return at::cat({net->parameters()[0].detach().flatten(), average.averages()[0].second.flatten(),
                      accelerator.is_main() ? outputs.view({1}) : at::zeros({1})});
    });
  };
  const auto whole = weights(Sharding::none), shared = weights(Sharding::automatic);
  for (std::size_t rank = 0; rank < 2; ++rank) CHECK(at::equal(whole[rank], shared[rank]));
}

TEST_CASE("a parameter of no model that is added later is each rank's own") {
  for (const Sharding sharding : {Sharding::automatic, Sharding::optimizer}) {
    const auto values = on_ranks<double>(2, {.sharding = sharding}, [](Accelerator& accelerator) {
      torch::nn::Linear net(6, 2);
      torch::optim::SGD sgd(net->parameters(), 0.1);
      auto [model, optimizer] = accelerator.prepare(net, sgd);
      at::Tensor temperature = at::ones({1}).requires_grad_();
      for (int step = 0; step < 6; ++step) {
        if (step == 3) sgd.add_param_group(OptimizerParamGroup({temperature}));
        accelerator.backward((model(batch_of(accelerator.rank(), step)) * temperature).square().mean());
        optimizer.step();
        optimizer.zero_grad();
      }
      return temperature.item<double>();
    });
    CHECK(values[0] != 1);
    CHECK(values[1] != 1);
    CHECK(values[0] != values[1]);  // its gradient is that of the rank's own batches
  }
}
