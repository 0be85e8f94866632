// Ranks that train on their own beside models that are averaged by hand.
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "nn/gradients.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// With counts of batches and running means, which are buffers.
struct Net : torch::nn::Module {
  Net() {
    first = register_module("first", torch::nn::Linear(4, 6));
    norm = register_module("norm", torch::nn::BatchNorm1d(6));
    second = register_module("second", torch::nn::Linear(6, 2));
    initialise(*this);
  }
  // Of each row of x.
  at::Tensor forward(const at::Tensor& x) { return second(torch::tanh(norm(first(x)))).pow(2).sum(1); }
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};

using Tensors = std::vector<at::Tensor>;

Tensors weights_of(const torch::nn::Module& module) {
  Tensors all;
  for (const auto& tensor : module.parameters()) all.push_back(tensor.detach().clone());
  for (const auto& tensor : module.buffers()) all.push_back(tensor.clone());
  return all;
}

struct Run {
  int ranks = 2;
  int steps = 3;         // between averages
  int accumulation = 1;  // micro-batches of a window
  bool items = false;    // form of backward
  double momentum = 0.9;
};

constexpr int kWindows = 7;

// The windows' lengths: the last one is closed early.
int length_of(const Run& run, int window) {
  return window == kWindows - 1 ? (run.accumulation + 1) / 2 : run.accumulation;
}

at::Tensor input(int rank, int window, int micro_batch) {
  auto generator =
      at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(1000 * rank + 10 * window + micro_batch));
  return at::randn({6 + (rank + micro_batch) % 3, 4}, generator);
}

// Each rank's weights after each window, and at the end.
std::vector<Gradients> train(const Run& run) {
  return on_ranks<Gradients>(
      run.ranks, {.gradient_accumulation_steps = run.accumulation}, [&](Accelerator& accelerator) {
        const auto net = std::make_shared<Net>();
        torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.1).momentum(run.momentum));
        auto [model, optimizer] = accelerator.prepare(net, sgd);
        Gradients seen;
        accelerator.local_sgd(run.steps, [&](nn::LocalSgd& local) {
          for (int window = 0; window < kWindows; ++window) {
            for (int m = 0; m < length_of(run, window); ++m) {
              const auto train_on = [&] {
                const auto losses = model(input(accelerator.rank(), window, m));
                if (run.items)
                  accelerator.backward(losses.sum(), static_cast<double>(losses.numel()));
                else
                  accelerator.backward(losses.mean());
                optimizer.step();
                optimizer.zero_grad();
                local.step();
              };
              if (run.accumulation == 1) {
                train_on();
              } else if (m == length_of(run, window) - 1) {
                auto micro_batch = accelerator.accumulate_and_close(model);
                train_on();
              } else {
                auto micro_batch = accelerator.accumulate(model);
                train_on();
              }
            }
            seen.push_back(weights_of(*net));
          }
        });
        seen.push_back(weights_of(*net));
        return seen;
      });
}

// One rank's optimizer step by hand.
void train_alone(Net& net, torch::optim::SGD& sgd, const Run& run, int rank, int window) {
  const int length = length_of(run, window);
  std::int64_t items = 0;
  for (int m = 0; m < length; ++m) items += input(rank, window, m).size(0);
  sgd.zero_grad();
  for (int m = 0; m < length; ++m) {
    const auto losses = net.forward(input(rank, window, m));
    (run.items ? losses.sum() / items : losses.mean() / length).backward();
  }
  sgd.step();
}

// Means; whole numbers are the first one's.
void average(const std::vector<std::shared_ptr<Net>>& nets) {
  const at::NoGradGuard no_grad;
  const auto tensors_of = [](Net& net) {
    Tensors all = net.parameters();
    for (const auto& buffer : net.buffers()) all.push_back(buffer);
    return all;
  };
  for (std::size_t i = 0; i < tensors_of(*nets[0]).size(); ++i) {
    Tensors of_ranks;
    for (const auto& net : nets) of_ranks.push_back(tensors_of(*net)[i]);
    const at::Tensor mean = of_ranks[0].is_floating_point() ? at::stack(of_ranks).mean(0) : of_ranks[0].clone();
    for (auto& tensor : of_ranks) tensor.copy_(mean);
  }
}

std::vector<Gradients> train_by_hand(const Run& run) {
  std::vector<std::shared_ptr<Net>> nets;
  std::vector<torch::optim::SGD> optimizers;
  std::vector<Gradients> seen(static_cast<std::size_t>(run.ranks));
  for (int rank = 0; rank < run.ranks; ++rank) {
    nets.push_back(std::make_shared<Net>());
    optimizers.emplace_back(nets.back()->parameters(), torch::optim::SGDOptions(0.1).momentum(run.momentum));
  }
  const auto note = [&] {
    for (std::size_t rank = 0; rank < nets.size(); ++rank) seen[rank].push_back(weights_of(*nets[rank]));
  };
  for (int window = 0; window < kWindows; ++window) {
    for (int rank = 0; rank < run.ranks; ++rank)
      train_alone(*nets[static_cast<std::size_t>(rank)], optimizers[static_cast<std::size_t>(rank)], run, rank, window);
    if ((window + 1) % run.steps == 0) average(nets);
    note();
  }
  average(nets);
  note();
  return seen;
}

// Gradient of y with respect to the weight is x.
struct ScaleImpl : torch::nn::Module {
  ScaleImpl() : weight(register_parameter("weight", torch::zeros({1}))) {}
  at::Tensor forward(const at::Tensor& x) { return (weight * x).sum(); }
  at::Tensor weight;
};
TORCH_MODULE(Scale);

}  // namespace

TEST_CASE("each rank trains on its own, and every steps-th window and the end average the models") {
  const Run run{.ranks = GENERATE(1, 2, 3, 4),
                .steps = GENERATE(1, 3, 10),
                .accumulation = GENERATE(1, 2, 4),
                .items = GENERATE(false, true)};
  CAPTURE(run.ranks, run.steps, run.accumulation, run.items);
  const auto actual = train(run), expected = train_by_hand(run);
  for (int rank = 0; rank < run.ranks; ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    CHECK(difference(actual[r], expected[r], 2e-5) == "");
    CHECK(difference({actual[r].back()}, {actual[0].back()}, 0) == "");
  }
  if (run.ranks > 1) CHECK((difference({actual[1][0]}, {actual[0][0]}, 0) == "") == (run.steps == 1));
}

TEST_CASE("an average after every step of plain SGD is ordinary data-parallel training") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const auto train_on_ranks = [&](bool local) {
    return on_ranks<Gradients>(ranks, [&](Accelerator& accelerator) {
      torch::nn::Linear linear(4, 2);
      initialise(*linear);
      torch::optim::SGD sgd(linear->parameters(), 0.1);
      auto [model, optimizer] = accelerator.prepare(linear, sgd);
      Gradients seen;
      const auto step = [&](int i) {
        accelerator.backward(torch::tanh(model(input(accelerator.rank(), i, 0))).pow(2).mean());
        optimizer.step();
        optimizer.zero_grad();
      };
      if (local)
        accelerator.local_sgd(1, [&](nn::LocalSgd& each) {
          for (int i = 0; i < 6; ++i) {
            step(i);
            each.step();
            seen.push_back(weights_of(*linear));
          }
        });
      else
        for (int i = 0; i < 6; ++i) {
          step(i);
          seen.push_back(weights_of(*linear));
        }
      return seen;
    });
  };
  CHECK(difference(train_on_ranks(true), train_on_ranks(false)[0], 1e-6) == "");
}

TEST_CASE("an average leaves frozen parameters alone to the bit, whole numbers are rank 0's, and buffers may stay") {
  const bool broadcast = GENERATE(true, false);
  struct Seen {
    bool frozen_is_same;
    std::int64_t count;
    double mean;
  };
  const auto seen =
      on_ranks<Seen>(7, {.gradient_reducer = {.broadcast_buffers = broadcast}}, [](Accelerator& accelerator) {
        auto model = accelerator.prepare(std::make_shared<Net>());
        model->second->weight.set_requires_grad(false);
        const at::Tensor before = model->second->weight.clone();
        accelerator.local_sgd(100, [&](nn::LocalSgd&) {
          model->norm->num_batches_tracked.fill_(10 + accelerator.rank());
          model->norm->running_mean.fill_(accelerator.rank());
        });
        return Seen{before.equal(model->second->weight), model->norm->num_batches_tracked.item<std::int64_t>(),
                    model->norm->running_mean[0].item<double>()};
      });
  for (int rank = 0; rank < 7; ++rank) {
    const Seen& of_rank = seen[static_cast<std::size_t>(rank)];
    CHECK(of_rank.frozen_is_same);
    CHECK(of_rank.count == 10 + (broadcast ? 0 : rank));
    CHECK(of_rank.mean == (broadcast ? 3 : rank));
  }
}

TEST_CASE("what lies on a parameter's memory, buffers or another parameter, is averaged once with it") {
  // With another tensor on all of the weight's memory, two ranks come to the same element at nearly the same time.
  struct Twice : torch::nn::Module {
    at::Tensor weight = register_parameter("weight", at::zeros({600, 600}));
    at::Tensor same = register_parameter("same", weight.detach());
  };
  struct OnOneMemory : Twice {
    at::Tensor part = register_parameter("part", weight.detach().view({-1}).narrow(0, 100, 40000));
    at::Tensor turned = register_buffer("turned", weight.detach().t());
    at::Tensor column = register_buffer("column", weight.detach().select(1, 7));
    at::Tensor early = register_buffer("early", column.detach().narrow(0, 0, 200));
    at::Tensor late = register_buffer("late", column.detach().narrow(0, 100, 200));
  };
  const int ranks = GENERATE(2, 3, 4);
  const auto sharding = GENERATE(Sharding::automatic, Sharding::optimizer, Sharding::none);
  const bool twice = GENERATE(true, false);
  CAPTURE(ranks, static_cast<int>(sharding), twice);
  const auto worst = on_ranks<double>(ranks, {.sharding = sharding}, [twice](Accelerator& accelerator) {
    const auto net = twice ? std::make_shared<Twice>() : std::make_shared<OnOneMemory>();
    torch::optim::SGD sgd({net->weight}, torch::optim::SGDOptions(1.0));
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    double apart = 0;
    for (int i = 1; i <= 10; ++i) {
      accelerator.local_sgd(1, [&](nn::LocalSgd&) {
        net->weight.mutable_grad() = at::full({600, 600}, -2.0 * accelerator.rank());
        optimizer.step();
      });
      const double expected = i * (accelerator.world_size() - 1);
      apart = std::max(apart, (net->weight - expected).abs().max().item<double>());
    }
    return apart;
  });
  for (const double of_rank : worst) CHECK(of_rank < 0.01);
}

TEST_CASE("after local_sgd ranks train on together, to the bit the same with every sharding") {
  struct Own : torch::optim::SGD {
    using SGD::SGD;
  };
  using Make = std::function<std::unique_ptr<torch::optim::Optimizer>(Tensors)>;
  const std::vector<Make> optimizers{
      [](Tensors all) { return std::make_unique<torch::optim::SGD>(all, torch::optim::SGDOptions(0.1).momentum(0.9)); },
      [](Tensors all) { return std::make_unique<torch::optim::AdamW>(all, torch::optim::AdamWOptions(0.1)); },
      [](Tensors all) { return std::make_unique<torch::optim::Adagrad>(all, torch::optim::AdagradOptions(0.1)); },
      [](Tensors all) { return std::make_unique<Own>(all, torch::optim::SGDOptions(0.1).momentum(0.9)); }};
  const int ranks = GENERATE(2, 3);
  for (const Make& make : optimizers) {
    std::vector<Tensors> seen;
    for (const Sharding sharding : {Sharding::none, Sharding::optimizer, Sharding::automatic}) {
      const auto ended = on_ranks<Tensors>(ranks, {.sharding = sharding}, [&](Accelerator& accelerator) {
        torch::manual_seed(1);
        torch::nn::Linear net(4, 3);
        const auto inner = make(net->parameters());
        auto [model, optimizer] = accelerator.prepare(net, *inner);
        torch::manual_seed(2 + accelerator.rank());
        const auto step = [&, &model = model, &optimizer = optimizer] {
          optimizer.zero_grad();
          accelerator.backward(model(at::randn({5, 4})).pow(3).mean());
          optimizer.step();
        };
        step();
        accelerator.local_sgd(2, [&](nn::LocalSgd& local) {
          for (int i = 0; i < 5; ++i, local.step()) step();
        });
        for (int i = 0; i < 3; ++i) step();
        return Tensors{net->weight.detach().clone(), net->bias.detach().clone()};
      });
      seen.insert(seen.end(), ended.begin(), ended.end());
    }
    for (const Tensors& one : seen)
      for (std::size_t i = 0; i < one.size(); ++i) CHECK(at::equal(one[i], seen[0][i]));
  }
}

TEST_CASE("a rank without items in a window has a gradient of 0, the others the mean over their own") {
  const auto gradients = on_ranks<float>(3, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(Scale());
    float gradient = 0;
    accelerator.local_sgd(1, [&](nn::LocalSgd&) {
      const int items = 2 * accelerator.rank();  // of 4, the others are masked
      accelerator.backward(model(torch::arange(4).lt(items) * (5.0F + accelerator.rank())), items);
      gradient = model->weight.grad().item<float>();
    });
    return gradient;
  });
  CHECK(gradients == std::vector<float>{0, 6, 7});
}

TEST_CASE("gradients that no optimizer has used by the end are reduced with those of the next backward") {
  struct Seen {
    float inside, outside;
  };
  const auto seen = on_ranks<Seen>(2, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(Scale());
    const auto micro_batch = [&](float x) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(torch::full({1}, x)));
      return model->weight.grad().item<float>();
    };
    Seen seen{};
    accelerator.local_sgd(1, [&](nn::LocalSgd& local) {
      seen.inside = micro_batch(10.0F + 10.0F * accelerator.rank());
      local.step();  // counts for nothing: the window is open
    });
    seen.outside = micro_batch(1);
    return seen;
  });
  CHECK(seen[0].inside == 5);
  CHECK(seen[1].inside == 10);
  CHECK(seen[0].outside == 8);  // the mean over the ranks of (10 + 1) / 2 and (20 + 1) / 2
  CHECK(seen[1].outside == 8);
}

TEST_CASE("a parameter that only backward passes within have reached has no gradient afterwards") {
  const auto defined = on_ranks<bool>(2, [](Accelerator& accelerator) {
    auto [one, two] = accelerator.prepare(Scale(), Scale());
    accelerator.local_sgd(1, [&](nn::LocalSgd& local) {
      accelerator.backward(one(torch::ones({1})) + two(torch::ones({1})));
      drop_gradients(*one);
      drop_gradients(*two);
      local.step();
    });
    accelerator.backward(one(torch::ones({1})));
    return two->weight.grad().defined();
  });
  CHECK(defined == std::vector<bool>{false, false});
}

TEST_CASE(
    "backward is not reduced by trigger_sync_in_backward either, and again after an exception has left the body") {
  struct Seen {
    float inside, outside;
    bool flag;
  };
  const auto seen = on_ranks<Seen>(2, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(Scale());
    const auto gradient = [&] {
      drop_gradients(*model);
      accelerator.backward(model(torch::full({1}, 2.0F * accelerator.rank())));
      return model->weight.grad().item<float>();
    };
    Seen seen{};
    try {
      accelerator.local_sgd(3, [&](nn::LocalSgd&) {
        auto sync = accelerator.trigger_sync_in_backward(model);
        seen.inside = gradient();
        throw std::runtime_error("out of patience");
      });
    } catch (const std::runtime_error&) {
    }
    seen.flag = accelerator.gradient_state().trains_alone();
    seen.outside = gradient();
    return seen;
  });
  CHECK(seen[0].inside == 0);
  CHECK(seen[1].inside == 2);
  for (const auto& rank : seen) {
    CHECK_FALSE(rank.flag);
    CHECK(rank.outside == 1);
  }
}

TEST_CASE("local_sgd says what is wrong with its use") {
  const auto error = [](const std::function<void(Accelerator&)>& body) {
    const auto error = run_ranks_expecting_error(2, body);
    CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
    return std::string(error.what());
  };
  const auto nothing = [](nn::LocalSgd&) {};
  CHECK_THAT(error([&](Accelerator& a) { a.local_sgd(0, nothing); }), ContainsSubstring("0 steps"));
  CHECK_THAT(error([&](Accelerator& a) { a.local_sgd(2, [&](nn::LocalSgd&) { a.local_sgd(2, nothing); }); }),
             ContainsSubstring("local_sgd within local_sgd"));
  CHECK_THAT(error([&](Accelerator& a) { a.join_uneven_inputs([&] { a.local_sgd(2, nothing); }); }),
             ContainsSubstring("local_sgd within join_uneven_inputs"));
  CHECK_THAT(error([&](Accelerator& a) { a.local_sgd(2, [&](nn::LocalSgd&) { a.join_uneven_inputs([] {}); }); }),
             ContainsSubstring("join_uneven_inputs within local_sgd"));
}
