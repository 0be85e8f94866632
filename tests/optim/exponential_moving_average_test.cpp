#include "tandem/optim/exponential_moving_average.h"

#include <functional>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/error_of.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;
using optim::ExponentialMovingAverage;

namespace {

at::Tensor find(const nn::NamedTensors& tensors, const std::string& name) {
  for (const auto& [key, tensor] : tensors)
    if (key == name) return tensor;
  throw std::runtime_error("no " + name);
}

void fill(torch::nn::Linear& net, double value) {
  const at::NoGradGuard no_grad;
  net->weight.fill_(value);
}

}  // namespace

TEST_CASE("an update keeps decay of the average and takes the rest from the weights") {
  torch::nn::Linear net(3, 2);
  fill(net, 1);
  ExponentialMovingAverage average(*net, {.decay = 0.75});
  double expected = 1;
  for (const double weight : {5.0, -2.0, 8.0}) {
    fill(net, weight);
    average.update();
    expected = 0.75 * expected + 0.25 * weight;
  }
  CHECK(average.updates() == 3);
  CHECK(at::allclose(find(average.averages(), "weight"), at::full({2, 3}, expected)));
}

TEST_CASE("with warm-up, update t keeps at most (1 + t) / (10 + t)") {
  torch::nn::Linear net(3, 2);
  fill(net, 0);
  ExponentialMovingAverage average(*net, {.decay = 0.15, .warm_up = true});
  fill(net, 1);
  double expected = 0;
  for (const double decay : {1.0 / 10, 0.15, 0.15}) {  // 2 / 11 is above 0.15
    average.update();
    expected = decay * expected + (1 - decay);
    CHECK(at::allclose(find(average.averages(), "weight"), at::full({2, 3}, expected)));
  }
}

TEST_CASE("buffers are copied, not averaged") {
  torch::nn::BatchNorm1d norm(2);
  ExponentialMovingAverage average(*norm, {.decay = 0.9});
  norm(at::randn({8, 2}));
  norm(at::randn({8, 2}));
  average.update();
  CHECK(at::equal(find(average.averages(), "running_mean"), norm->running_mean));
  CHECK(find(average.averages(), "num_batches_tracked").item<int>() == 2);
}

TEST_CASE("sparse buffers stay the model's, and expanded ones are swapped as others are") {
  torch::nn::Linear net(3, 2);
  net->register_buffer("adjacency", at::eye(3).to_sparse());
  net->register_buffer("compressed", at::eye(3).to_sparse_csr());
  net->register_buffer("positions", at::arange(3).expand({2, 3}));
  ExponentialMovingAverage average(*net, {.decay = 0.5});
  for (int i = 0; i < 2; ++i) {
    average.update();
    const auto swapped = average.swap_in();
    CHECK(at::equal(net->named_buffers()["positions"], at::arange(3).expand({2, 3})));
    CHECK(net->named_buffers()["adjacency"]._nnz() == 3);
  }
  CHECK(average.averages().size() == 3);
}

TEST_CASE("the averages are in the model while they are swapped in, and then its own values to the bit") {
  torch::nn::Linear net(3, 2);
  const at::Tensor start = net->weight.detach().clone();
  ExponentialMovingAverage average(*net, {.decay = 1});
  fill(net, 7);
  average.update();
  {
    const auto swapped = average.swap_in();
    CHECK_THROWS_AS(average.swap_in(), ConfigError);  // it would give the model its own values
    CHECK(at::equal(net->weight, start));
    CHECK(net->weight.requires_grad());
    CHECK_THROWS_AS(average.update(), ConfigError);
    CHECK_THROWS_AS(average.averages(), ConfigError);
  }
  CHECK(at::equal(net->weight, at::full({2, 3}, 7.0)));
  CHECK(at::equal(find(average.averages(), "weight"), start));
}

TEST_CASE("tied weights are averaged and swapped once") {
  struct Tied : torch::nn::Module {
    Tied() {
      register_parameter("a", weight);
      register_parameter("b", weight);
    }
    at::Tensor weight = at::ones({2}).requires_grad_();
  } net;
  ExponentialMovingAverage average(net, {.decay = 0.5});
  {
    const at::NoGradGuard no_grad;
    net.weight.fill_(3);
  }
  average.update();
  {
    const auto swapped = average.swap_in();
    CHECK(at::equal(net.weight, at::full({2}, 2.0)));
  }
  CHECK(at::equal(net.weight, at::full({2}, 3.0)));
  CHECK(average.averages().size() == 1);
}

TEST_CASE("a buffer on the memory of a weight shows the average while it is in the model, and then the weight") {
  using Make = std::function<at::Tensor(const at::Tensor&)>;
  const std::vector<std::pair<std::string, Make>> buffers{
      {"the same", [](const at::Tensor& weight) { return weight.detach(); }},
      {"transposed", [](const at::Tensor& weight) { return weight.detach().t(); }},
      {"a row", [](const at::Tensor& weight) { return weight.detach()[1]; }},
      {"a column", [](const at::Tensor& weight) { return weight.detach().select(1, 2); }},
      {"expanded",
       [](const at::Tensor& weight) {
         return weight.detach()[1].expand({4, 3});
       }},
      {"its bits", [](const at::Tensor& weight) { return weight.detach().view(at::kInt); }},
      {"without detach", [](const at::Tensor& weight) { return weight.t(); }}};
  for (const auto& [name, make] : buffers)
    for (const int ranks : {1, 2}) {
      CAPTURE(name, ranks);
      const auto right = on_ranks<bool>(ranks, [&make = make](Accelerator& a) {
        torch::nn::Linear net(3, 2);
        net->register_buffer("shows", make(net->weight));
        torch::optim::SGD sgd(net->parameters(), 0.5);
        auto [model, optimizer] = a.prepare(net, sgd);
        ExponentialMovingAverage average(model, {.decay = 0.5});
        const auto shows = [&] {
          return at::equal(net->named_buffers()["shows"], make(net->weight)) &&
                 net->named_buffers()["shows"].is_alias_of(net->weight);
        };
        bool all = shows();
        for (int step = 0; step < 3; ++step) {
          a.backward(model(at::ones({2, 3})).sum());
          optimizer.step();
          optimizer.zero_grad();
          average.update();
          const at::Tensor last = net->weight.detach().clone();
          {
            const auto swapped = average.swap_in();
            all = all && shows() && !at::equal(net->weight, last);
          }
          all = all && shows() && at::equal(net->weight, last);
        }
        ExponentialMovingAverage other(model, {.decay = 0.5});
        other.load(average.averages(), average.updates());
        const auto swapped = other.swap_in();
        return all && shows() && at::equal(net->weight, find(average.averages(), "weight"));
      });
      CHECK(right == std::vector<bool>(static_cast<std::size_t>(ranks), true));
    }
}

TEST_CASE("a buffer that has a part of its memory in common with a weight is refused, one beside it is copied") {
  const at::Tensor memory = at::ones({12});
  struct OnOneMemory : torch::nn::Module {
    OnOneMemory(const at::Tensor& weight, const at::Tensor& buffer) {
      register_parameter("weight", weight.detach(), true);
      register_buffer("seen", buffer);
    }
  };
  for (const at::Tensor& buffer : {memory, memory.narrow(0, 2, 4), memory.narrow(0, 5, 4)})
    CHECK_THAT(error_of<ConfigError>([&] { ExponentialMovingAverage(OnOneMemory(memory.narrow(0, 4, 4), buffer)); }),
               ContainsSubstring("'seen'") && ContainsSubstring("'weight'"));
  OnOneMemory beside(memory.narrow(0, 4, 4), memory.narrow(0, 8, 4));
  ExponentialMovingAverage average(beside, {.decay = 0.5});
  {
    const at::NoGradGuard no_grad;
    memory.fill_(3);
  }
  average.update();
  const auto swapped = average.swap_in();
  CHECK(at::equal(beside.named_buffers()["seen"], at::full({4}, 3.0)));
  CHECK(at::equal(beside.named_parameters()["weight"], at::full({4}, 2.0)));
}

TEST_CASE("averages that were saved and loaded go on as if nothing had happened") {
  torch::nn::Linear net(3, 2);
  ExponentialMovingAverage average(*net, {.decay = 0.9, .warm_up = true});
  fill(net, 2);
  for (int i = 0; i < 5; ++i) average.update();
  ExponentialMovingAverage other(*net, {.decay = 0.9, .warm_up = true});
  other.load(average.averages(), average.updates());
  fill(net, 3);
  average.update();
  other.update();
  CHECK(other.updates() == 6);
  CHECK(at::equal(find(average.averages(), "weight"), find(other.averages(), "weight")));
}

TEST_CASE("averages of another model are refused, and nothing is overwritten") {
  torch::nn::Linear net(3, 2), other(3, 4);
  ExponentialMovingAverage average(*net);
  const at::Tensor before = find(average.averages(), "weight").clone();
  auto averages = ExponentialMovingAverage(*other).averages();
  CHECK_THROWS_AS(average.load(averages, 1), CheckpointError);
  averages.clear();
  CHECK_THROWS_AS(average.load(averages, 1), CheckpointError);
  CHECK(at::equal(find(average.averages(), "weight"), before));
  CHECK_THROWS_AS(ExponentialMovingAverage(*net, {.decay = 1.5}), ConfigError);
}
