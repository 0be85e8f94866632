// Optimizers that evaluate the loss themselves, beside LibTorch's on all ranks' data.
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/sgd.h>
#include <memory>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

namespace F = torch::nn::functional;

constexpr std::int64_t kSamples = 24;

torch::nn::Sequential make_net() {
  torch::nn::Sequential net(torch::nn::Linear(5, 8), torch::nn::Tanh(), torch::nn::Linear(8, 1));
  net->to(at::kDouble);  // the line search may make much of a rounding
  const at::NoGradGuard no_grad;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  for (const auto& parameter : net->parameters())
    parameter.copy_(at::randn(parameter.sizes(), generator, at::dtype(at::kDouble)) * 0.4);
  return net;
}

struct Data {
  at::Tensor inputs, targets;
  Data() {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
    inputs = at::randn({kSamples, 5}, generator, at::kDouble);
    targets = at::sin(inputs.sum(1, /*keepdim=*/true)) + 0.1 * at::randn({kSamples, 1}, generator, at::kDouble);
  }
};

torch::optim::LBFGSOptions options_of(bool strong_wolfe) {
  torch::optim::LBFGSOptions options(strong_wolfe ? 1.0 : 0.1);
  options.max_iter(5).history_size(4);
  if (strong_wolfe) options.line_search_fn("strong_wolfe");
  return options;
}

struct Trained {
  std::vector<double> losses;
  std::vector<at::Tensor> weights;
  std::int64_t updates = 0;
};

std::vector<at::Tensor> copies(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  for (const auto& tensor : tensors) result.push_back(tensor.detach().clone());
  return result;
}

// An optimizer of a user's own, that looks ahead with a second evaluation.
class Extragradient : public torch::optim::SGD {
 public:
  using SGD::SGD;
  at::Tensor step(LossClosure closure) override {
    if (!closure) throw std::logic_error("Extragradient needs a closure");
    const at::NoGradGuard no_grad;
    const auto evaluate = [&] {
      const at::AutoGradMode on(true);
      return closure();
    };
    const at::Tensor loss = evaluate();
    const double lr = param_groups()[0].options().get_lr();
    const auto before = copies(param_groups()[0].params());
    for (auto& parameter : param_groups()[0].params()) parameter.sub_(parameter.grad(), lr);
    evaluate();
    for (std::size_t i = 0; i < before.size(); ++i) {
      at::Tensor& parameter = param_groups()[0].params()[i];
      parameter.copy_(before[i]).sub_(parameter.grad(), lr);
    }
    return loss;
  }
};

using Make = std::function<std::unique_ptr<torch::optim::Optimizer>(const torch::nn::Sequential&)>;

const std::vector<std::pair<std::string, Make>>& optimizers() {
  static const std::vector<std::pair<std::string, Make>> all{
      {"LBFGS",
       [](const auto& net) { return std::make_unique<torch::optim::LBFGS>(net->parameters(), options_of(false)); }},
      {"LBFGS with strong_wolfe",
       [](const auto& net) { return std::make_unique<torch::optim::LBFGS>(net->parameters(), options_of(true)); }},
      {"SGD", [](const auto& net) { return std::make_unique<torch::optim::SGD>(net->parameters(), 0.05); }},
      {"AdamW", [](const auto& net) { return std::make_unique<torch::optim::AdamW>(net->parameters(), 0.02); }},
      {"one of a user's own",
       [](const auto& net) { return std::make_unique<Extragradient>(net->parameters(), 0.05); }}};
  return all;
}

Trained train_plainly(const Make& make) {
  const Data data;
  auto net = make_net();
  const auto optimizer = make(net);
  Trained trained;
  for (int step = 0; step < 4; ++step)
    trained.losses.push_back(optimizer
                                 ->step([&] {
                                   optimizer->zero_grad();
                                   auto loss = F::mse_loss(net->forward(data.inputs), data.targets);
                                   loss.backward();
                                   return loss;
                                 })
                                 .item<double>());
  trained.weights = copies(net->parameters());
  return trained;
}

enum class Form { mean, items, batches, outside };

// Rank r's rows: of different numbers where items are counted.
std::pair<std::int64_t, std::int64_t> rows_of(int rank, int ranks, Form form) {
  const auto begin = [&](std::int64_t r) {
    return form == Form::items ? kSamples * r * (r + 1) / (ranks * (ranks + 1)) : kSamples * r / ranks;
  };
  return {begin(rank), begin(rank + 1)};
}

std::vector<Trained> train_on(int ranks, const Make& make, Form form, const LaunchConfig& config = {}) {
  return on_ranks<Trained>(ranks, config, [&](Accelerator& accelerator) {
    const Data data;
    auto net = make_net();
    const auto inner = make(net);
    auto [model, optimizer] = accelerator.prepare(net, *inner);
    const auto [begin, end] = rows_of(accelerator.rank(), ranks, form);
    const at::Tensor inputs = data.inputs.slice(0, begin, end), targets = data.targets.slice(0, begin, end);
    const auto closure = [&, &model = model, &optimizer = optimizer]() -> at::Tensor {
      optimizer.zero_grad();
      if (form == Form::items) {
        auto sum = (model(inputs) - targets).pow(2).sum();
        accelerator.backward(sum, static_cast<double>(inputs.size(0)));
        return sum;
      }
      if (form != Form::batches) {
        auto loss = F::mse_loss(model(inputs), targets);
        accelerator.backward(loss);
        return loss;
      }
      at::Tensor total = at::zeros({}, at::kDouble);
      for (int half = 0; half < 2; ++half) {
        auto loss = F::mse_loss(model(inputs.chunk(2)[half]), targets.chunk(2)[half]) / 2;
        accelerator.backward(loss);
        total = total + loss.detach();
      }
      return total;
    };
    Trained trained;
    for (int step = 0; step < 4; ++step) {
      std::unique_ptr<MicroBatch> window;
      if (form != Form::outside) window.reset(new MicroBatch(accelerator.accumulate_and_close()));
      trained.losses.push_back(optimizer.step(closure).template item<double>());
    }
    trained.weights = copies(net->parameters());
    trained.updates = optimizer.updates();
    return trained;
  });
}

}  // namespace

TEST_CASE("a step with a closure is that of one rank on all ranks' data") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const auto form = GENERATE(Form::mean, Form::items, Form::batches, Form::outside);
  const int accumulation = GENERATE(1, 4);
  for (const auto& [name, make] : optimizers()) {
    CAPTURE(ranks, static_cast<int>(form), accumulation, name);
    const Trained expected = train_plainly(make);
    const auto seen = train_on(ranks, make, form, {.gradient_accumulation_steps = accumulation});
    for (const Trained& rank : seen) {
      CHECK(rank.updates == 4);
      for (std::size_t i = 0; i < 4; ++i) CHECK(rank.losses[i] == Approx(expected.losses[i]).epsilon(1e-8));
      CHECK(rank.losses == seen[0].losses);
      for (std::size_t i = 0; i < expected.weights.size(); ++i) {
        CHECK(at::allclose(rank.weights[i], expected.weights[i], 1e-6, 1e-8));
        CHECK(rank.weights[i].equal(seen[0].weights[i]));
      }
    }
  }
}

TEST_CASE("one rank's step with a closure is LibTorch's, to the bit") {
  for (const auto& [name, make] : optimizers()) {
    CAPTURE(name);
    const Trained expected = train_plainly(make);
    const auto seen = train_on(1, make, Form::mean, {.fused_optimizers = false})[0];
    CHECK(seen.losses == expected.losses);
    for (std::size_t i = 0; i < expected.weights.size(); ++i) CHECK(seen.weights[i].equal(expected.weights[i]));
  }
}

namespace {

struct Wrong {
  std::string says;
  std::function<void(Accelerator&, const torch::nn::Sequential&, optim::AcceleratedOptimizer&)> body;
  LaunchConfig config{};
};

at::Tensor pass(Accelerator& accelerator, const torch::nn::Sequential& net) {
  auto loss = net.ptr()->forward<at::Tensor>(at::ones({2, 5}, at::kDouble) * (accelerator.rank() + 1)).pow(2).mean();
  accelerator.backward(loss);
  return loss;
}

}  // namespace

TEST_CASE("what cannot be done with a closure is said, the same on all ranks") {
  const int ranks = GENERATE(1, 2);
  const std::vector<Wrong> all{
      {"needs a closure for it: optimizer.step([&]",
       [](Accelerator& accelerator, const auto& net, auto& optimizer) {
         pass(accelerator, net);
         optimizer.step();
       }},
      {"empty function", [](Accelerator&, const auto&, auto& optimizer) { optimizer.step(optim::Closure()); }},
      {"several micro-batches",
       [](Accelerator& accelerator, const auto& net, auto& optimizer) {
         for (int m = 0; m < 2; ++m) {
           auto window = accelerator.accumulate();
           optimizer.step([&] { return pass(accelerator, net); });
         }
       },
       {.gradient_accumulation_steps = 2}},
      {"several micro-batches",
       [](Accelerator& accelerator, const auto& net, auto& optimizer) {
         { auto window = accelerator.accumulate(); }
         auto window = accelerator.accumulate();
         optimizer.step([&] { return pass(accelerator, net); });
       },
       {.gradient_accumulation_steps = 2}},
      {"open it around the step",
       [](Accelerator& accelerator, const auto& net, auto& optimizer) {
         optimizer.step([&] {
           auto window = accelerator.accumulate();
           return pass(accelerator, net);
         });
       }},
      {"within the closure of another step",
       [](Accelerator& accelerator, const auto& net, auto& optimizer) {
         optimizer.step([&] {
           optimizer.step([&] { return pass(accelerator, net); });
           return pass(accelerator, net);
         });
       }},
      {"fp16",
       [](Accelerator& accelerator, const auto& net, auto& optimizer) {
         optimizer.step([&] { return pass(accelerator, net); });
       },
       {.mixed_precision = Precision::fp16}},
      {"within join_uneven_inputs", [](Accelerator& accelerator, const auto& net, auto& optimizer) {
         accelerator.join_uneven_inputs([&] { optimizer.step([&] { return pass(accelerator, net); }); });
       }}};
  for (const Wrong& wrong : all) {
    CAPTURE(ranks, wrong.says);
    const auto error = run_ranks_expecting_error(ranks, wrong.config, [&](Accelerator& accelerator) {
      auto net = make_net();
      torch::optim::LBFGS lbfgs(net->parameters());
      auto [model, optimizer] = accelerator.prepare(net, lbfgs);
      wrong.body(accelerator, net, optimizer);
    });
    CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
    CHECK_THAT(error.what(), ContainsSubstring(wrong.says));
  }
}

TEST_CASE("a closure that calls LibTorch's backward is an error on several ranks") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    auto net = make_net();
    torch::optim::LBFGS lbfgs(net->parameters());
    auto [model, optimizer] = accelerator.prepare(net, lbfgs);
    optimizer.step([&, &model = model] {
      lbfgs.zero_grad();
      auto loss = model(at::ones({2, 5}, at::kDouble)).pow(2).mean();
      loss.backward();
      return loss;
    });
  });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
  CHECK_THAT(error.what(), ContainsSubstring("accelerator.backward(loss)"));
}

TEST_CASE("within no_sync and local_sgd each rank takes its own step with a closure") {
  const bool local_sgd = GENERATE(true, false);
  const auto weights = on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
    auto net = make_net();
    torch::optim::LBFGS lbfgs(net->parameters(), options_of(true));
    auto [model, optimizer] = accelerator.prepare(net, lbfgs);
    const auto step = [&, &model = model, &optimizer = optimizer] {
      optimizer.step([&] {
        optimizer.zero_grad();
        auto loss = (model(at::ones({2, 5}, at::kDouble)) - (1.0 + accelerator.rank())).pow(2).mean();
        accelerator.backward(loss);
        return loss;
      });
    };
    std::vector<at::Tensor> seen;
    if (local_sgd) {
      accelerator.local_sgd(1000, [&](nn::LocalSgd&) {
        step();
        seen = copies(net->parameters());
      });
    } else {
      auto local = accelerator.no_sync(model);
      step();
      seen = copies(net->parameters());
    }
    return seen;
  });
  for (int rank = 0; rank < 2; ++rank) {
    auto net = make_net();
    torch::optim::LBFGS lbfgs(net->parameters(), options_of(true));
    lbfgs.step([&] {
      lbfgs.zero_grad();
      auto loss = (net->forward(at::ones({2, 5}, at::kDouble)) - (1.0 + rank)).pow(2).mean();
      loss.backward();
      return loss;
    });
    const auto expected = net->parameters();
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK(at::allclose(weights[static_cast<std::size_t>(rank)][i], expected[i], 1e-5, 1e-6));
  }
}
