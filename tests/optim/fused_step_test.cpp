// The fused step against torch::optim's own, which is the reference: the same gradients, option by option.
#include "tandem/optim/fused_step.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/serialize/archive.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;
using optim::FusedStep;
using torch::optim::Adam;
using torch::optim::AdamOptions;
using torch::optim::AdamW;
using torch::optim::AdamWOptions;
using torch::optim::SGD;
using torch::optim::SGDOptions;

namespace {

constexpr int kSteps = 50;

at::Generator seeded(std::uint64_t seed) { return at::make_generator<at::CPUGeneratorImpl>(seed); }

// Sizes with and without a rest to whole vectors, no dimension, no element, another order in memory, another type.
std::vector<at::Tensor> make_parameters() {
  auto generator = seeded(1);
  std::vector<at::Tensor> parameters;
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{17, 5}, {64, 64}, {1}, {}, {0, 3}, {8, 1, 3, 3}, {130}})
    parameters.push_back(at::randn(shape, generator));
  parameters.push_back(at::randn({4, 3, 5, 5}, generator).contiguous(at::MemoryFormat::ChannelsLast));
  parameters.push_back(at::randn({9, 3}, generator, at::kDouble));
  for (at::Tensor& parameter : parameters) parameter.requires_grad_();
  return parameters;
}

// Every fifth gradient or so is undefined. The strides of dimensions of size 1 are not always the parameter's.
void set_gradients(const std::vector<at::Tensor>& parameters, at::Generator generator) {
  for (const at::Tensor& parameter : parameters) {
    parameter.mutable_grad().reset();
    if (at::rand({}, generator).item<float>() < 0.2f) continue;
    at::Tensor gradient = at::empty_like(parameter, parameter.options().requires_grad(false)).normal_(0, 1, generator);
    if (parameter.dim() == 4 && parameter.size(1) == 1) gradient = gradient.contiguous(at::MemoryFormat::ChannelsLast);
    parameter.mutable_grad() = gradient;
  }
}

// Two groups; only the first has the options.
template <class Optimizer, class Options>
std::unique_ptr<Optimizer> make_optimizer(const std::vector<at::Tensor>& parameters, const Options& options) {
  using Group = torch::optim::OptimizerParamGroup;
  const auto middle = parameters.begin() + 5;
  return std::make_unique<Optimizer>(
      std::vector{Group({parameters.begin(), middle}, std::make_unique<Options>(options)),
                  Group({middle, parameters.end()})},
      Options(0.02));
}

struct Trained {
  std::vector<at::Tensor> parameters;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
};

// With `step(optimizer, number of the step)`.
template <class Optimizer, class Options, class Step>
Trained train(const Options& options, Step&& step) {
  Trained trained{.parameters = make_parameters(), .optimizer = nullptr};
  trained.optimizer = make_optimizer<Optimizer>(trained.parameters, options);
  auto generator = seeded(2);
  for (int i = 0; i < kSteps; ++i) {
    set_gradients(trained.parameters, generator);
    step(*trained.optimizer, i);
  }
  return trained;
}

template <class Optimizer, class Options>
Trained train_fused(const Options& options) {
  std::optional<FusedStep> fused;
  return train<Optimizer>(options, [&](torch::optim::Optimizer& optimizer, int) {
    if (!fused) fused.emplace(optimizer);
    if (!fused->step()) throw std::runtime_error("not fused");
  });
}

template <class Optimizer, class Options>
Trained train_plainly(const Options& options) {
  return train<Optimizer>(options, [](torch::optim::Optimizer& optimizer, int) { optimizer.step(); });
}

// A parameter's state as tensors; empty for none.
std::vector<at::Tensor> state_of(const torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
  const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
  if (found == optimizer.state().end()) return {};
  const auto adam = [](const auto& state) {
    std::vector<at::Tensor> tensors{at::scalar_tensor(state.step(), at::kLong), state.exp_avg(), state.exp_avg_sq()};
    if (state.max_exp_avg_sq().defined()) tensors.push_back(state.max_exp_avg_sq());
    return tensors;
  };
  const auto* state = found->second.get();
  if (const auto* of = dynamic_cast<const torch::optim::AdamParamState*>(state)) return adam(*of);
  if (const auto* of = dynamic_cast<const torch::optim::AdamWParamState*>(state)) return adam(*of);
  return {dynamic_cast<const torch::optim::SGDParamState&>(*state).momentum_buffer()};
}

// Parameters and states, one list.
std::vector<at::Tensor> tensors_of(const Trained& trained) {
  std::vector<at::Tensor> tensors;
  for (const at::Tensor& parameter : trained.parameters) {
    tensors.push_back(parameter.detach());
    for (const at::Tensor& tensor : state_of(*trained.optimizer, parameter)) tensors.push_back(tensor);
  }
  return tensors;
}

// The largest difference of a tensor, as a part of its largest value; over all tensors.
double difference(const Trained& a, const Trained& b) {
  const auto first = tensors_of(a), second = tensors_of(b);
  REQUIRE(first.size() == second.size());
  double largest = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    REQUIRE(first[i].scalar_type() == second[i].scalar_type());
    REQUIRE(first[i].sizes() == second[i].sizes());
    if (first[i].numel() == 0) continue;
    const double scale = std::max(second[i].abs().max().item<double>(), 1e-30);
    largest = std::max(largest, (first[i] - second[i]).abs().max().item<double>() / scale);
  }
  return largest;
}

bool equal_bits(const Trained& a, const Trained& b) {
  const auto first = tensors_of(a), second = tensors_of(b);
  return std::equal(first.begin(), first.end(), second.begin(), second.end(),
                    [](const at::Tensor& x, const at::Tensor& y) { return at::equal(x, y); });
}

const std::vector<SGDOptions> sgd_options{
    SGDOptions(0.05),
    SGDOptions(0.05).weight_decay(0.1),
    SGDOptions(0.05).momentum(0.9),
    SGDOptions(0.05).momentum(0.9).weight_decay(0.1),
    SGDOptions(0.05).momentum(0.9).dampening(0.3),
    SGDOptions(0.05).momentum(0.9).nesterov(true).weight_decay(0.01),
};

template <class Options>
std::vector<Options> adam_options() {
  return {Options(0.01), Options(0.01).weight_decay(0.1), Options(0.01).amsgrad(true),
          Options(0.01).betas({0.8, 0.95}).eps(1e-5), Options(0.01).amsgrad(true).weight_decay(0.2)};
}

void save_and_load(torch::optim::Optimizer& optimizer) {
  std::stringstream stream;
  torch::serialize::OutputArchive saved;
  optimizer.save(saved);
  saved.save_to(stream);
  torch::serialize::InputArchive loaded;
  loaded.load_from(stream);
  optimizer.load(loaded);
}

}  // namespace

TEST_CASE("the fused step gives the weights and the state of LibTorch's own, for every option") {
  for (const auto& options : sgd_options)
    CHECK(difference(train_fused<SGD>(options), train_plainly<SGD>(options)) <= 1e-5);
  for (const auto& options : adam_options<AdamOptions>())
    CHECK(difference(train_fused<Adam>(options), train_plainly<Adam>(options)) <= 1e-5);
  for (const auto& options : adam_options<AdamWOptions>())
    CHECK(difference(train_fused<AdamW>(options), train_plainly<AdamW>(options)) <= 1e-5);
}

TEST_CASE("the fused step gives the same bits again") {
  CHECK(equal_bits(train_fused<SGD>(sgd_options.back()), train_fused<SGD>(sgd_options.back())));
  const auto options = adam_options<AdamWOptions>().back();
  CHECK(equal_bits(train_fused<AdamW>(options), train_fused<AdamW>(options)));
}

TEST_CASE("either step may follow the other, with saving and loading in between") {
  const auto alternate = [](torch::optim::Optimizer& optimizer, int i) {
    if (i % 10 == 9) save_and_load(optimizer);
    if (i % 3 == 0)
      optimizer.step();
    else
      CHECK(FusedStep(optimizer).step());
  };
  const auto momentum = SGDOptions(0.05).momentum(0.9).dampening(0.3);
  CHECK(difference(train<SGD>(momentum, alternate), train_plainly<SGD>(momentum)) <= 1e-5);
  const auto amsgrad = AdamOptions(0.01).amsgrad(true);
  CHECK(difference(train<Adam>(amsgrad, alternate), train_plainly<Adam>(amsgrad)) <= 1e-5);
}

TEST_CASE("a fused step sees a state that was loaded and parameters that were added since the last") {
  at::Tensor first = at::ones({3}).requires_grad_(), second = at::ones({3}).requires_grad_();
  AdamW optimizer({first}, AdamWOptions(0.1));
  FusedStep fused(optimizer);
  first.mutable_grad() = at::ones({3});
  CHECK(fused.step());
  save_and_load(optimizer);
  optimizer.add_param_group(torch::optim::OptimizerParamGroup({second}));
  second.mutable_grad() = at::ones({3});
  CHECK(fused.step());
  CHECK(state_of(optimizer, first)[0].item<int>() == 2);
  CHECK(state_of(optimizer, second)[0].item<int>() == 1);
}

TEST_CASE("a fused step keeps no gradient alive") {
  at::Tensor parameter = at::ones({3}).requires_grad_();
  SGD optimizer({parameter}, SGDOptions(0.1).momentum(0.9));
  FusedStep fused(optimizer);
  const at::Tensor gradient = parameter.mutable_grad() = at::ones({3});
  CHECK(fused.step());
  optimizer.zero_grad();
  CHECK(gradient.use_count() == 1);
}

TEST_CASE("what the kernels do not do alike is left to LibTorch's step") {
  at::Tensor parameter = at::ones({4, 4}).requires_grad_();
  parameter.mutable_grad() = at::arange(16.0).view({4, 4});
  SECTION("another class") {
    torch::optim::RMSprop optimizer({parameter});
    CHECK(!FusedStep(optimizer).step());
  }
  SECTION("a derived class, which may step differently") {
    struct Doubled : SGD {
      using SGD::SGD;
      at::Tensor step(LossClosure closure) override {
        SGD::step(closure);
        return SGD::step(nullptr);
      }
    } optimizer({parameter}, SGDOptions(0.1));
    CHECK(!FusedStep(optimizer).step());
    CHECK(parameter[0][1].item<float>() == Approx(0.8f));
  }
  SECTION("a sparse gradient") {
    parameter.mutable_grad() = parameter.grad().to_sparse();
    SGD optimizer({parameter}, SGDOptions(0.1));
    CHECK(!FusedStep(optimizer).step());
    CHECK(parameter[0][1].item<float>() == Approx(0.9f));
  }
  SECTION("a gradient in another order in memory") {
    parameter.mutable_grad() = parameter.grad().t();
    AdamW optimizer({parameter}, AdamWOptions(0.1));
    CHECK(!FusedStep(optimizer).step());
    CHECK(state_of(optimizer, parameter)[0].item<int>() == 1);
  }
  SECTION("a half type") {
    at::Tensor half = at::ones({4}, at::kBFloat16).requires_grad_();
    half.mutable_grad() = at::ones({4}, at::kBFloat16);
    SGD optimizer({parameter, half}, SGDOptions(0.1).momentum(0.9));
    CHECK(!FusedStep(optimizer).step());
    CHECK(parameter[0][1].item<float>() == Approx(0.9f));  // once
  }
  SECTION("a parameter that is listed twice, which LibTorch updates twice") {
    parameter.mutable_grad() = at::ones({4, 4});
    SGD optimizer({parameter, parameter}, SGDOptions(0.1));
    CHECK(!FusedStep(optimizer).step());
    CHECK(parameter[0][1].item<float>() == Approx(0.8f));
  }
}

TEST_CASE("prepare's optimizers step fused unless that is turned off") {
  const bool fused = GENERATE(true, false);
  const auto same = on_ranks<bool>(1, {.fused_optimizers = fused}, [&](Accelerator& accelerator) {
    const auto train = [&](auto&& step) {
      torch::manual_seed(3);
      rng::manual_seed(3);
      torch::nn::Linear net(33, 7);
      AdamW adamw(net->parameters(), AdamWOptions(0.01));
      auto optimizer = accelerator.prepare(adamw);
      for (int i = 0; i < 20; ++i) {
        net(at::randn({4, 33})).square().sum().backward();
        step(adamw, optimizer);
        adamw.zero_grad();
      }
      return net->weight.detach();
    };
    const auto prepared = train([](AdamW&, optim::AcceleratedOptimizer& optimizer) { optimizer.step(); });
    const auto expected = train([&](AdamW& adamw, optim::AcceleratedOptimizer&) {
      if (fused)
        FusedStep(adamw).step();
      else
        adamw.step();
    });
    return at::equal(prepared, expected);
  });
  CHECK(same[0]);
}

TEST_CASE("after a step every rank is refused a graph that has saved weights from before, whoever updates them") {
  const int kind = GENERATE(0, 1, 2), ranks = GENERATE(1, 2, 3);
  const bool fused = GENERATE(true, false);
  const auto sharding = GENERATE(Sharding::automatic, Sharding::optimizer, Sharding::none);
  std::vector<int> refused(static_cast<std::size_t>(ranks));
  run_ranks(ranks, {.fused_optimizers = fused, .sharding = sharding}, [&](Accelerator& accelerator) {
    // The second layer's graph saves its weight, for what comes before needs a gradient.
    torch::nn::Sequential net(torch::nn::Linear(4, 4), torch::nn::Linear(4, 1));
    std::unique_ptr<torch::optim::Optimizer> inner;
    if (kind == 0) inner = std::make_unique<SGD>(net->parameters(), SGDOptions(0.1));
    if (kind == 1) inner = std::make_unique<Adam>(net->parameters());
    if (kind == 2) inner = std::make_unique<AdamW>(net->parameters());
    auto [model, optimizer] = accelerator.prepare(net, *inner);
    const at::Tensor waits = model(at::ones({2, 4})).sum();
    accelerator.backward(model(at::ones({2, 4})).sum());
    optimizer.step();
    try {
      waits.backward();
    } catch (const c10::Error& error) {
      refused[static_cast<std::size_t>(accelerator.rank())] =
          std::string(error.what()).find("modified by an inplace operation") != std::string::npos;
    }
  });
  CAPTURE(fused, kind, ranks, static_cast<int>(sharding));
  CHECK(refused == std::vector<int>(static_cast<std::size_t>(ranks), 1));
}
