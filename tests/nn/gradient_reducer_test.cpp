// Every kind of model and option beside one model that sees all ranks' data.
#include <random>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/parameterlist.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include "nn/gradients.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr int kWidth = 5;

at::Tensor input(int rank, int step, std::int64_t rows = 3) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(100 * rank + step + 1));
  return at::randn({rows, kWidth}, generator);
}

// Layers of which each pass uses some, some of them repeatedly.
struct Layers : torch::nn::Module {
  explicit Layers(int count, bool wide = false) {
    for (int i = 0; i < count; ++i)
      layers.push_back(register_module("layer" + std::to_string(i), torch::nn::Linear(kWidth, kWidth)));
    if (wide) big = register_module("big", torch::nn::Linear(kWidth, 3000));
  }
  at::Tensor forward(at::Tensor x, const std::vector<int>& path) {
    for (const int i : path) x = torch::tanh(layers[static_cast<std::size_t>(i)](x));
    return big ? x.pow(2).mean() + big(x).pow(2).mean() : x.pow(2).mean();
  }
  std::vector<torch::nn::Linear> layers;
  torch::nn::Linear big{nullptr};
};

std::vector<int> random_path(std::mt19937& random, int layers) {
  std::vector<int> path(1 + random() % 6);
  for (int& layer : path) layer = static_cast<int>(random() % static_cast<unsigned>(layers));
  return path;
}

nn::GradientReducerOptions random_options(std::mt19937& random) {
  const std::size_t sizes[] = {1, 200, 4000, 25 << 20};
  nn::GradientReducerOptions options;
  options.bucket_bytes = sizes[random() % 4];
  options.first_bucket_bytes = sizes[random() % 4];
  options.gradient_as_bucket_view = random() % 4 != 0;
  options.share_gradients = random() % 4 != 0;
  return options;
}

}  // namespace

TEST_CASE("random models, of which each rank's pass uses other parts, some repeatedly, some frozen at times") {
  std::mt19937 random(GENERATE(range(0, 24)));
  const int ranks = 1 + static_cast<int>(random() % 4), count = 1 + static_cast<int>(random() % 8);
  const bool steady = random() % 3 == 0;     // all passes use the same
  const bool same_path = random() % 3 == 0;  // all ranks do
  const bool freezes = random() % 2 == 0;
  const unsigned seed = random();
  Trial trial;
  trial.make = [count, wide = random() % 2 == 0] { return std::make_shared<Layers>(count, wide); };
  trial.loss = [=](torch::nn::Module& module, int rank, int step) {
    std::mt19937 of_pass(seed + (steady ? 0 : 7u * static_cast<unsigned>(step)) +
                         (same_path ? 0 : 1000u * static_cast<unsigned>(rank)));
    auto path = random_path(of_pass, count);
    auto loss = static_cast<Layers&>(module).forward(input(rank, step).requires_grad_(), path);
    return loss;
  };
  if (freezes)
    trial.before_step = [=](torch::nn::Module& module, int step) {
      for (int i = 0; i < count; ++i)
        for (auto& parameter : static_cast<Layers&>(module).layers[static_cast<std::size_t>(i)]->parameters())
          parameter.requires_grad_((seed >> (i + 3 * step) % 32) % 3 != 0);
    };
  trial.steps = 8;
  trial.keep_gradients = random() % 3 == 0;
  trial.config.gradient_reducer = random_options(random);
  CAPTURE(ranks, count, steady, same_path, freezes, trial.keep_gradients);
  CHECK(difference(gradients_on_ranks(ranks, trial), gradients_of_all(ranks, trial)) == "");
}

namespace {

struct Mixed : torch::nn::Module {
  Mixed() {
    list->append(torch::randn({kWidth}));
    list->append(torch::randn({kWidth, kWidth}));
    register_module("list", list);
    plain = register_module("plain", torch::nn::Linear(kWidth, kWidth));
    precise = register_module("precise", torch::nn::Linear(kWidth, kWidth));
    precise->to(at::kDouble);
    turned = register_parameter("turned", torch::randn({kWidth}, at::kComplexFloat));
    strided = register_parameter("strided", torch::randn({kWidth, 2 * kWidth}).t().detach());
    scalar = register_parameter("scalar", torch::randn({}));
    empty = register_parameter("empty", torch::randn({0, 3}));
  }
  at::Tensor forward(const at::Tensor& x) {
    auto y = torch::matmul(plain(x) * list[0], list[1]);
    y = (y * turned).conj().abs() + torch::matmul(x, strided.t()).narrow(1, 0, kWidth);
    return precise(y.to(at::kDouble)).pow(2).mean() * scalar + empty.sum();
  }
  torch::nn::ParameterList list;
  torch::nn::Linear plain{nullptr}, precise{nullptr};
  at::Tensor turned, strided, scalar, empty;
};

}  // namespace

TEST_CASE("float, double and complex parameters, lists of them, strided, 0-dim and empty ones") {
  const int ranks = GENERATE(1, 2, 3, 4);
  Trial trial;
  trial.make = [] { return std::make_shared<Mixed>(); };
  trial.loss = [](torch::nn::Module& m, int rank, int step) {
    return static_cast<Mixed&>(m).forward(input(rank, step));
  };
  trial.config.gradient_reducer.bucket_bytes = GENERATE(1, 300, 25 << 20);
  trial.config.gradient_reducer.gradient_as_bucket_view = GENERATE(true, false);
  CHECK(difference(gradients_on_ranks(ranks, trial), gradients_of_all(ranks, trial)) == "");
}

namespace {

struct ChannelsLast : torch::nn::Module {
  ChannelsLast() {
    conv = register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 4, 3)));
    conv->weight = register_parameter("weight", conv->weight.detach().contiguous(at::MemoryFormat::ChannelsLast));
  }
  torch::nn::Conv2d conv{nullptr};
};

}  // namespace

TEST_CASE("gradients lie in memory as their parameters do") {
  Trial trial;
  trial.make = [] { return std::make_shared<ChannelsLast>(); };
  trial.loss = [](torch::nn::Module& module, int rank, int step) {
    return torch::conv2d(input(rank, step, 45).view({1, 3, 15, 5}), static_cast<ChannelsLast&>(module).conv->weight)
        .pow(2)
        .sum();
  };
  CHECK(difference(gradients_on_ranks(3, trial), gradients_of_all(3, trial)) == "");
  const auto strides = on_ranks<std::vector<std::int64_t>>(2, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<ChannelsLast>());
    for (int step = 0; step < 2; ++step) accelerator.backward(trial.loss(*model, accelerator.rank(), step));
    return model->conv->weight.grad().strides().vec();
  });
  CHECK(strides[0] == ChannelsLast().conv->weight.strides().vec());
}

namespace {

struct Words : torch::nn::Module {
  explicit Words(bool sparse) {
    table = register_module("table", torch::nn::Embedding(torch::nn::EmbeddingOptions(20, kWidth).sparse(sparse)));
    linear = register_module("linear", torch::nn::Linear(kWidth, 2));
  }
  torch::nn::Embedding table{nullptr};
  torch::nn::Linear linear{nullptr};
};

}  // namespace

TEST_CASE("sparse gradients are gathered, also from ranks that have none, and may become dense") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const bool changes = GENERATE(false, true);
  const bool some_have_none = GENERATE(false, true);
  Trial trial;
  trial.make = [] { return std::make_shared<Words>(true); };
  trial.loss = [=](torch::nn::Module& module, int rank, int step) {
    auto& words = static_cast<Words&>(module);
    if (some_have_none && (rank + step) % 3 == 2) return words.linear(input(rank, step)).pow(2).mean();
    auto loss = words.linear(words.table(at::tensor({rank, 3, 3, step, 7 * rank % 20}))).pow(2).mean();
    return changes && (rank + 2 * step) % 4 == 1 ? loss + words.table->weight.pow(2).mean() : loss;
  };
  CHECK(difference(gradients_on_ranks(ranks, trial), gradients_of_all(ranks, trial)) == "");
  if (changes) return;
  const auto sparse = on_ranks<bool>(ranks, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(trial.make());
    accelerator.backward(trial.loss(*model, accelerator.rank(), 0));
    return static_cast<Words&>(*model).table->weight.grad().is_sparse();
  });
  CHECK(std::all_of(sparse.begin(), sparse.end(), [](bool is) { return is; }));
}

namespace {

// Runs a layer without a graph, and again in backward, as checkpointing does.
struct Recomputed : torch::autograd::Function<Recomputed> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, torch::nn::Linear* layer) {
    context->save_for_backward({x});
    context->saved_data["layer"] = reinterpret_cast<std::int64_t>(layer);
    const at::NoGradGuard no_grad;
    return torch::tanh((*layer)(x));
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    auto* layer = reinterpret_cast<torch::nn::Linear*>(context->saved_data["layer"].toInt());
    const at::AutoGradMode with_graph(true);
    const auto x = context->get_saved_variables()[0].detach().requires_grad_();
    torch::tanh((*layer)(x)).backward(gradients[0]);
    return {x.grad(), at::Tensor()};
  }
};

}  // namespace

TEST_CASE("recomputed parts, also such that reach a parameter several times, and more often than before") {
  const int ranks = GENERATE(1, 2, 4);
  const bool more_later = GENERATE(false, true);
  Trial trial;
  trial.make = [] { return std::make_shared<Layers>(3, true); };
  trial.loss = [=](torch::nn::Module& module, int rank, int step) {
    auto& layers = static_cast<Layers&>(module);
    auto x = input(rank, step).requires_grad_();
    // The extra passes come after those of the layers before: their buckets have started by then.
    const int times = more_later && step > 2 ? 2 + (rank + step) % 2 : 2;
    for (int i = 0; i < times; ++i) x = Recomputed::apply(x, &layers.layers[0]);
    x = torch::tanh(layers.layers[1](x));
    x = Recomputed::apply(x, &layers.layers[2]);
    return layers.forward(Recomputed::apply(x, &layers.layers[0]), {2});
  };
  trial.config.gradient_reducer.bucket_bytes = GENERATE(1, 25 << 20);
  trial.config.gradient_reducer.first_bucket_bytes = 1;
  CHECK(difference(gradients_on_ranks(ranks, trial), gradients_of_all(ranks, trial)) == "");
}

TEST_CASE("a gradient that is part of a graph takes part in the next loss with the ranks' mean") {
  // loss 1 gives g; loss 2 = sum of mean(g)^2, whose gradient is that of all ranks together.
  const int ranks = GENERATE(1, 2, 4);
  const auto seen = on_ranks<Gradients>(ranks, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<Layers>(2));
    initialise(*model);
    Gradients all;
    for (int step = 0; step < 3; ++step) {
      drop_gradients(*model);
      const auto x = input(accelerator.rank(), step);
      accelerator.backward(model(x, std::vector<int>{0, 1}), {.create_graph = true});
      at::Tensor penalty = at::zeros({});
      for (const auto& parameter : model->parameters()) penalty = penalty + parameter.grad().pow(2).sum();
      drop_gradients(*model);
      accelerator.backward(penalty);
      all.push_back(gradients_of(*model));
    }
    return all;
  });
  Layers alone(2);
  initialise(alone);
  Gradients expected;
  for (int step = 0; step < 3; ++step) {
    at::Tensor loss = at::zeros({});
    for (int rank = 0; rank < ranks; ++rank) loss = loss + alone.forward(input(rank, step), {0, 1}) / ranks;
    const auto gradients = torch::autograd::grad({loss}, alone.parameters(), {}, true, true);
    at::Tensor penalty = at::zeros({});
    for (const auto& gradient : gradients) penalty = penalty + gradient.pow(2).sum();
    drop_gradients(alone);
    penalty.backward();
    expected.push_back(gradients_of(alone));
  }
  CHECK(difference(seen, expected) == "");
}

TEST_CASE("several models, several backward passes before one step, and a graph that is kept") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const std::vector<int> path{0, 1};
  const auto losses = [&](Layers& a, Layers& b, int rank, int step) {
    const auto x = torch::tanh(a.layers[0](input(rank, step)));
    // The second loss needs b only every other step.
    return std::pair{b.forward(x, path), step % 2 == 0 ? a.forward(x, path) + b.forward(x, path) : a.forward(x, path)};
  };
  const auto seen = on_ranks<Gradients>(ranks, [&](Accelerator& accelerator) {
    auto [a, b, idle] = accelerator.prepare(std::make_shared<Layers>(2), std::make_shared<Layers>(3, true),
                                            std::make_shared<Layers>(1));
    for (auto* model : {&a, &b}) initialise(**model);
    Gradients all;
    for (int step = 0; step < 5; ++step) {
      for (auto* model : {&a, &b}) drop_gradients(**model);
      const auto [first, second] = losses(*a, *b, accelerator.rank(), step);
      accelerator.backward(first, {.retain_graph = true});
      accelerator.backward(second);
      auto gradients = gradients_of(*a);
      for (const auto& gradient : gradients_of(*b)) gradients.push_back(gradient);
      for (const auto& gradient : gradients_of(*idle)) gradients.push_back(gradient);
      all.push_back(gradients);
    }
    return all;
  });
  Layers a(2), b(3, true), idle(1);
  for (auto* model : {&a, &b}) initialise(*model);
  Gradients expected;
  for (int step = 0; step < 5; ++step) {
    for (auto* model : {&a, &b}) drop_gradients(*model);
    for (int rank = 0; rank < ranks; ++rank) {
      const auto [first, second] = losses(a, b, rank, step);
      ((first + second) / ranks).backward();
    }
    auto gradients = gradients_of(a);
    for (const auto& gradient : gradients_of(b)) gradients.push_back(gradient);
    for (const auto& gradient : gradients_of(idle)) gradients.push_back(gradient);
    expected.push_back(gradients);
  }
  CHECK(difference(seen, expected) == "");
}
