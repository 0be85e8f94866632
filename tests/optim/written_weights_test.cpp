// CPU ranks have one copy of the weights, and whatever a program does to its own is as if each had its own.
#include <cstring>
#include <functional>
#include <sstream>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/init.h>
#include <torch/nn/modules.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/modules/transformer.h>
#include <torch/nn/utils/convert_parameters.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include "support/bf16_lstm.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

torch::nn::Sequential make_net() {
  return torch::nn::Sequential(torch::nn::Linear(6, 5), torch::nn::Tanh(), torch::nn::Linear(5, 3));
}

at::Tensor batch(int rank, int step) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(10 * step + rank + 1));
  return at::randn({4, 6}, generator);
}

// What a rank has to write with.
struct Rank {
  torch::nn::Sequential net{make_net()};
  at::Tensor weight{net->parameters()[2]};  // what is written to
  at::Tensor view_from_before{weight.detach().view({-1})};
  at::Tensor data_from_before{weight.data()};
  std::unique_ptr<torch::optim::Optimizer> inner;
  float* pointer = nullptr;  // taken after prepare and kept
  std::function<void()> own_step;
};

struct Way {
  const char* name;
  std::function<void(Rank&)> write;
  bool by_kept_pointer = false;
};

void halve(float* numbers, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) numbers[i] *= 0.5F;
}

std::string saved(torch::nn::Sequential& net) {
  std::ostringstream stream;
  torch::save(net, stream);
  return stream.str();
}

// Every way in which LibTorch has tensors written to. All are called without gradients.
const Way kWays[] = {
    {"an operator in place", [](Rank& r) { r.weight.mul_(0.5); }},
    {"data()", [](Rank& r) { r.weight.data().mul_(0.5); }},
    {"detach()", [](Rank& r) { r.weight.detach().mul_(0.5); }},
    {"variable_data()", [](Rank& r) { r.weight.variable_data().mul_(0.5); }},
    {"a view from before prepare", [](Rank& r) { r.view_from_before.mul_(0.5); }},
    {"data() from before prepare", [](Rank& r) { r.data_from_before.mul_(0.5); }},
    {"a slice", [](Rank& r) { r.weight.slice(0, 1).fill_(0.25); }},
    {"an index", [](Rank& r) { r.weight.index_put_({at::tensor({0}, at::kLong)}, at::full({5}, 0.1F)); }},
    {"copy_", [](Rank& r) { r.weight.copy_(r.weight.mul(0.5)); }},
    {"an out= call", [](Rank& r) { at::mul_out(r.weight, r.weight.mul(1.0), at::scalar_tensor(0.5F)); }},
    {"a foreach call", [](Rank& r) { at::_foreach_mul_({r.weight}, 0.5); }},
    {"torch::nn::init", [](Rank& r) { torch::nn::init::constant_(r.weight, 0.3); }},
    {"data_ptr", [](Rank& r) { halve(r.weight.data_ptr<float>(), r.weight.numel()); }},
    {"mutable_data_ptr", [](Rank& r) { halve(r.weight.mutable_data_ptr<float>(), r.weight.numel()); }},
    {"an accessor",
     [](Rank& r) {
       auto numbers = r.weight.accessor<float, 2>();
       for (std::int64_t i = 0; i < 3; ++i) numbers[i][i] *= 0.5F;
     }},
    {"the storage's pointer",
     [](Rank& r) { halve(static_cast<float*>(r.weight.storage().mutable_data()), r.weight.numel()); }},
    {"a pointer that is kept", [](Rank& r) { halve(r.pointer, r.weight.numel()); }, true},
    {"set_data", [](Rank& r) { r.weight.set_data(r.weight.detach().mul(0.5)); }},
    {"set_", [](Rank& r) { r.weight.set_(r.weight.detach().mul(0.5)); }},
    {"vector_to_parameters",
     [](Rank& r) {
       torch::nn::utils::vector_to_parameters(torch::nn::utils::parameters_to_vector(r.net->parameters()).mul(0.5),
                                              r.net->parameters());
     }},
    {"torch::load into the model",
     [](Rank& r) {
       auto other = make_net();
       for (auto& parameter : other->parameters()) parameter.fill_(0.05);
       std::istringstream stream(saved(other));
       torch::load(r.net, stream);
       r.weight = r.net->parameters()[2];
     }},
    {"a larger storage",
     [](Rank& r) {
       r.weight.data().resize_({40}).resize_({3, 5});
     }},
    {"another optimizer's step", [](Rank& r) { torch::optim::SGD(r.net->parameters(), 0.1).step(); }},
    {"the inner optimizer's own step", [](Rank& r) { r.own_step(); }},
    {"clamping, as WGAN does",
     [](Rank& r) {
       for (auto& parameter : r.net->parameters()) parameter.data().clamp_(-0.1, 0.1);
     }},
    {"nothing but a look through a writable pointer", [](Rank& r) { (void)r.weight.data_ptr<float>()[0]; }},
};

enum class When { before_the_first_step, after_backward, after_step, after_every_third_step };

struct EndedWithViews {
  std::vector<at::Tensor> weights, views;
};

struct Case {
  const Way* way;
  When when;
  int who;  // -1: all ranks
  bool adamw;
};

EndedWithViews train(Accelerator& a, const Case& now) {
  Rank rank;
  if (now.adamw)
    rank.inner = std::make_unique<torch::optim::AdamW>(rank.net->parameters(), 0.02);
  else
    rank.inner = std::make_unique<torch::optim::RMSprop>(rank.net->parameters(),
                                                         torch::optim::RMSpropOptions(0.01).momentum(0.5));
  rank.own_step = [&] { rank.inner->step(); };
  auto [model, optimizer] = a.prepare(rank.net, *rank.inner);
  if (now.way->by_kept_pointer) rank.pointer = rank.weight.data_ptr<float>();
  const auto write = [&](When when, int step) {
    if (when != now.when || (now.who >= 0 && now.who != a.rank())) return;
    if (when == When::after_every_third_step && step % 3 != 2) return;
    if (when == When::before_the_first_step && step > 0) return;
    if ((when == When::after_backward || when == When::after_step) && step % 2 != 1) return;
    const at::NoGradGuard no_grad;
    now.way->write(rank);
  };
  for (int step = 0; step < 7; ++step) {
    write(When::before_the_first_step, step);
    a.backward(rank.net->forward(batch(a.rank(), step)).pow(2).mean());
    write(When::after_backward, step);
    optimizer.step();
    write(When::after_step, step);
    write(When::after_every_third_step, step);
    optimizer.zero_grad();
  }
  EndedWithViews ended;
  for (const auto& parameter : rank.net->parameters()) ended.weights.push_back(parameter.detach().clone());
  ended.views = {rank.view_from_before.clone(), rank.data_from_before.clone()};
  return ended;
}

bool equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& one, const auto& other) { return at::equal(one, other); });
}

}  // namespace

TEST_CASE("whatever writes to weights, whenever, on one rank or all: the ranks train on as if each had its own") {
  for (const Way& way : kWays)
    for (const When when :
         {When::before_the_first_step, When::after_backward, When::after_step, When::after_every_third_step})
      for (const int who : {-1, 0, 1}) {
        const Case now{&way, when, who, /*adamw=*/(static_cast<int>(when) + who) % 2 == 0};
        CAPTURE(way.name, static_cast<int>(when), who, now.adamw);
        const auto run = [&](Sharding sharding) {
          return on_ranks<EndedWithViews>(2, {.sharding = sharding}, [&](Accelerator& a) { return train(a, now); });
        };
        const auto whole = run(Sharding::none);
        for (const Sharding sharding : {Sharding::automatic, Sharding::optimizer}) {
          const auto ended = run(sharding);
          for (std::size_t rank = 0; rank < 2; ++rank) {
            CHECK(equal(ended[rank].weights, whole[rank].weights));
            CHECK(equal(ended[rank].views, whole[rank].views));
          }
        }
      }
}

TEST_CASE("weights that are halved through data() after each step are halved once") {
  const auto values = on_ranks<std::vector<float>>(2, [](Accelerator& a) {
    torch::nn::Linear net(torch::nn::LinearOptions(1, 1).bias(false));
    net->weight.data().fill_(1);
    torch::optim::SGD sgd(net->parameters(), 0.0);
    auto [model, optimizer] = a.prepare(net, sgd);
    std::vector<float> seen;
    for (int step = 0; step < 4; ++step) {
      a.backward(model(at::ones({1, 1})).sum());
      optimizer.step();
      net->weight.data().mul_(0.5);
      seen.push_back(net->weight.item<float>());
    }
    return seen;
  });
  for (const auto& seen : values) CHECK(seen == std::vector<float>{0.5F, 0.25F, 0.125F, 0.0625F});
}

TEST_CASE("everything that refers to a weight's storage sees the rank's weights at any time") {
  struct Tied : torch::nn::Module {
    Tied() {
      encoder = register_module("encoder", torch::nn::Linear(6, 5));
      same_memory = register_buffer("same_memory", encoder->weight.detach().t());
    }
    torch::nn::Linear encoder{nullptr};
    at::Tensor same_memory;
  };
  const bool paused = GENERATE(false, true);
  const auto differences = on_ranks<double>(3, [&](Accelerator& a) {
    const auto net = std::make_shared<Tied>();
    const at::Tensor weight = net->encoder->weight;
    const std::vector<at::Tensor> aliases{weight.detach().view({-1}), weight.data().view({-1}),
                                          weight.detach().t().t().view({-1}), at::alias(weight.detach()).view({-1}),
                                          at::empty({0}).set_(weight.storage(), 0, {30}, {1})};
    torch::optim::AdamW adamw(net->parameters(), 0.1);
    auto [model, optimizer] = a.prepare(net, adamw);
    optim::ExponentialMovingAverage average(model, {.decay = 0.5});
    double worst = 0;
    const auto look = [&] {
      for (const at::Tensor& alias : aliases)
        worst = std::max(worst, (alias - weight.detach().reshape({-1})).abs().max().item<double>());
      worst = std::max(worst, (net->same_memory - weight.detach().t()).abs().max().item<double>());
    };
    const auto step = [&](int number) {
      a.backward(net->encoder->forward(batch(a.rank(), number)).pow(2).mean());
      optimizer.step();
      optimizer.zero_grad();
      average.update();
      look();
    };
    for (int number = 0; number < 3; ++number) step(number);
    { const auto swapped = average.swap_in(); }
    look();
    if (paused)
      a.local_sgd(2, [&](nn::LocalSgd& local) {
        for (int n = 0; n < 4; ++n) step(n), local.step();
      });
    for (int number = 3; number < 6; ++number) step(number);
    return worst;
  });
  CHECK(differences == std::vector<double>{0, 0, 0});
}

TEST_CASE("parameters on one storage, beside each other or the same memory, are trained as without sharing") {
  const bool overlap = GENERATE(false, true);
  struct Flat : torch::nn::Module {
    explicit Flat(bool overlap) {
      const at::Tensor flat = at::arange(48, at::kFloat).div(50);
      first = register_parameter("first", flat.narrow(0, 0, 24).view({4, 6}));
      second = register_parameter("second",
                                  overlap ? flat.narrow(0, 0, 24).view({6, 4}) : flat.narrow(0, 24, 24).view({6, 4}));
      alone = register_parameter("alone", at::ones({4, 4}) / 3);
    }
    at::Tensor first, second, alone;
  };
  const auto run = [&](Sharding sharding) {
    return on_ranks<std::vector<at::Tensor>>(3, {.sharding = sharding}, [&](Accelerator& a) {
      const auto net = std::make_shared<Flat>(overlap);
      torch::optim::AdamW adamw(net->parameters(), 0.05);
      auto [model, optimizer] = a.prepare(net, adamw);
      for (int step = 0; step < 5; ++step) {
        const auto out = batch(a.rank(), step).mm(net->second).mm(net->alone).mm(net->first);
        a.backward(out.pow(2).mean());
        optimizer.step();
        optimizer.zero_grad();
      }
      std::vector<at::Tensor> weights;
      for (const auto& parameter : net->parameters()) weights.push_back(parameter.detach().clone());
      return weights;
    });
  };
  const auto whole = run(Sharding::none);
  for (const Sharding sharding : {Sharding::automatic, Sharding::optimizer}) {
    const auto ended = run(sharding);
    for (std::size_t rank = 0; rank < 3; ++rank) CHECK(equal(ended[rank], whole[rank]));
  }
}

TEST_CASE("memory that the program has given as a weight is not shared: it may write to it") {
  std::vector<std::vector<float>> memory(2, std::vector<float>(30, 0.1F));
  const auto same = on_ranks<int>(2, [&](Accelerator& a) {
    auto& mine = memory[static_cast<std::size_t>(a.rank())];
    torch::nn::Linear net(torch::nn::LinearOptions(6, 5).bias(false));
    net->weight.set_data(at::from_blob(mine.data(), {5, 6}));
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto [model, optimizer] = a.prepare(net, sgd);
    bool is_mine = true;
    for (int step = 0; step < 4; ++step) {
      a.backward(model(batch(a.rank(), step)).pow(2).mean());
      optimizer.step();
      optimizer.zero_grad();
      mine[3] += 1;
      is_mine = is_mine && net->weight.const_data_ptr() == mine.data();
    }
    return is_mine ? 1 : 0;
  });
  CHECK(same == std::vector<int>{1, 1});
  CHECK(memory[0] == memory[1]);
}

TEST_CASE("models that outlive the launch are independent of each other") {
  std::vector<torch::nn::Linear> nets(3, nullptr);
  run_ranks(3, [&](Accelerator& a) {
    torch::nn::Linear net(6, 5);
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto [model, optimizer] = a.prepare(net, sgd);
    a.backward(model(batch(a.rank(), 0)).pow(2).mean());
    optimizer.step();
    nets[static_cast<std::size_t>(a.rank())] = net;
  });
  const at::Tensor before = nets[2]->weight.detach().clone();
  CHECK(at::equal(nets[0]->weight, before));
  const at::NoGradGuard no_grad;
  for (auto* net : {&nets[0], &nets[1]}) halve((*net)->weight.data_ptr<float>(), 30);
  CHECK(at::equal(nets[2]->weight, before));
  CHECK(at::equal(nets[0]->weight, before * 0.5));
}

namespace {

struct Layer {
  const char* name;
  std::function<std::shared_ptr<torch::nn::Module>()> make;
  std::function<at::Tensor(torch::nn::Module&)> forward;
  bool asks_to_write =
      false;  // its kernel asks for pointers to write through, and reads: each rank has its own weights
};

template <class Impl, class... Inputs>
Layer layer(const char* name, Impl made, Inputs... inputs) {
  return {name, [made] { return std::dynamic_pointer_cast<torch::nn::Module>(made.ptr()->clone()); },
          [inputs...](torch::nn::Module& module) {
            auto& impl = dynamic_cast<typename Impl::ContainedType&>(module);
            auto out = impl.forward(inputs...);
            if constexpr (std::is_same_v<decltype(out), at::Tensor>)
              return out;
            else
              return std::get<0>(out);
          },
          /*asks_to_write=*/std::is_same_v<Impl, torch::nn::LSTM>};
}

at::Tensor numbers(at::IntArrayRef sizes) {
  return at::arange(c10::multiply_integers(sizes), at::kFloat).sin().view(sizes);
}

std::vector<Layer> common_layers() {
  namespace nn = torch::nn;
  const auto sequence = numbers({5, 2, 8});
  const auto words = at::tensor({1, 4, 2, 0}, at::kLong).view({2, 2});
  return {layer("Linear", nn::Linear(8, 4), numbers({3, 8})),
          layer("Bilinear", nn::Bilinear(8, 8, 2), numbers({3, 8}), numbers({3, 8})),
          layer("Conv1d", nn::Conv1d(3, 4, 3), numbers({2, 3, 9})),
          layer("Conv2d", nn::Conv2d(nn::Conv2dOptions(4, 4, 3).groups(2)), numbers({2, 4, 9, 9})),
          layer("Conv2d, many channels", nn::Conv2d(nn::Conv2dOptions(16, 32, 3).padding(1)), numbers({2, 16, 16, 16})),
          layer("Conv3d", nn::Conv3d(2, 3, 2), numbers({1, 2, 4, 4, 4})),
          layer("ConvTranspose2d", nn::ConvTranspose2d(3, 4, 3), numbers({2, 3, 5, 5})),
          layer("BatchNorm1d", nn::BatchNorm1d(8), numbers({4, 8})),
          layer("BatchNorm2d", nn::BatchNorm2d(3), numbers({2, 3, 4, 4})),
          layer("InstanceNorm2d", nn::InstanceNorm2d(nn::InstanceNorm2dOptions(3).affine(true)), numbers({2, 3, 4, 4})),
          layer("LayerNorm", nn::LayerNorm(nn::LayerNormOptions({8})), numbers({3, 8})),
          layer("GroupNorm", nn::GroupNorm(nn::GroupNormOptions(2, 4)), numbers({2, 4, 3})),
          layer("PReLU", nn::PReLU(nn::PReLUOptions().num_parameters(8)), numbers({3, 8})),
          layer("Embedding", nn::Embedding(6, 3), words),
          layer("EmbeddingBag", nn::EmbeddingBag(6, 3), words),
          layer("RNN", nn::RNN(8, 4), sequence),
          layer("LSTM", nn::LSTM(nn::LSTMOptions(8, 4).num_layers(2).bidirectional(true)), sequence),
          layer("GRU", nn::GRU(8, 4), sequence),
          layer("LSTMCell", nn::LSTMCell(8, 4), numbers({3, 8})),
          layer("MultiheadAttention", nn::MultiheadAttention(8, 2), sequence, sequence, sequence),
          layer("TransformerEncoderLayer", nn::TransformerEncoderLayer(8, 2), sequence),
          layer("TransformerDecoderLayer", nn::TransformerDecoderLayer(8, 2), sequence, sequence)};
}

}  // namespace

TEST_CASE("common layers train with one copy of the weights: no pass, step, average or save makes another") {
  const auto precision = GENERATE(Precision::no, Precision::bf16);
  for (const Layer& layer : common_layers()) {
    CAPTURE(layer.name, static_cast<int>(precision));
    if (layer.name == std::string("LSTM") && precision == Precision::bf16 && !has_bf16_lstm()) continue;
    const auto memory = on_ranks<std::vector<const void*>>(2, {.mixed_precision = precision}, [&](Accelerator& a) {
      const auto net = layer.make();
      torch::optim::AdamW adamw(net->parameters(), 0.01);
      auto [model, optimizer] = a.prepare(net, adamw);
      optim::ExponentialMovingAverage average(model, {.decay = 0.5});
      for (int step = 0; step < 4; ++step) {
        net->train(step < 3);
        const auto out = [&] {
          const auto scope = a.autocast();
          return layer.forward(*net);
        }();
        a.backward(out.to(at::kFloat).pow(2).mean());
        a.clip_grad_norm_(net->parameters(), 1.0);
        optimizer.step();
        optimizer.zero_grad();
        average.update();
        const auto swapped = average.swap_in();
      }
      std::vector<const void*> found;
      for (const auto& parameter : net->parameters()) found.push_back(parameter.const_data_ptr());
      return found;
    });
    if (!layer.asks_to_write) CHECK(memory[0] == memory[1]);
  }
}
