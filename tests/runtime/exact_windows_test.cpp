// Exact mode: what windows and gradients do in it, and what it refuses.
#include <limits>

#include "runtime/exact_networks.h"
#include "support/error_of.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct OneWeight {
  torch::nn::Linear net{torch::nn::LinearOptions(1, 1).bias(false)};
  std::unique_ptr<torch::optim::Optimizer> inner;
  nn::Model<torch::nn::LinearImpl> model;
  optim::AcceleratedOptimizer optimizer;

  explicit OneWeight(Accelerator& accelerator)
      : inner(make_stepper(Stepper::sgd, start())),
        model(accelerator.prepare(net)),
        optimizer(accelerator.prepare(*inner)) {}

  std::vector<at::Tensor> start() {
    const torch::NoGradGuard no_grad;
    net->weight.fill_(1);
    return net->parameters();
  }
};

// What `body(accelerator, line, shard)` leaves as the weight when each of 4 logical shards has run it `rounds` times.
using ShardBody = std::function<void(Accelerator&, OneWeight&, int shard)>;

double weight_after(int ranks, const ShardBody& body, int rounds = 1, LaunchConfig config = {}) {
  config.cpu = ranks;
  config.exact = ExactOptions{.logical_ranks = 4};
  double weight = 0;
  launch(config, [&](Accelerator& accelerator) {
    OneWeight line(accelerator);
    for (int round = 0; round < rounds; ++round)
      for (int shard = accelerator.rank(); shard < 4; shard += ranks) body(accelerator, line, shard);
    if (accelerator.is_main()) weight = line.net->weight.item<double>();
  });
  return weight;
}

at::Tensor loss_of(OneWeight& line, int shard) { return line.model(at::full({1, 1}, shard + 1.0)).sum(); }

void check_weight(double expected, const ShardBody& body, int rounds = 1, const LaunchConfig& config = {}) {
  for (const int ranks : {1, 2, 4}) {
    CAPTURE(ranks);
    CHECK(weight_after(ranks, body, rounds, config) == Approx(expected).epsilon(1e-6));
  }
}

}  // namespace

TEST_CASE("in exact mode a shard's passes add up, and gradients are dropped with the update") {
  // The mean gradient is 2.5, of which SGD takes a tenth.
  check_weight(0.75, [](Accelerator& a, OneWeight& line, int shard) {
    const auto micro_batch = a.accumulate(line.model);
    line.optimizer.zero_grad();  // first
    a.backward(loss_of(line, shard));
    line.optimizer.step();
  });
  check_weight(0.5, [](Accelerator& a, OneWeight& line, int shard) {  // two passes
    const auto micro_batch = a.accumulate(line.model);
    a.backward(loss_of(line, shard));
    a.backward(loss_of(line, shard));
    line.optimizer.step();
    line.optimizer.zero_grad();  // last
  });
  // Momentum is 0.9: 0.25, then 0.25 + 0.225.
  check_weight(
      1 - 0.25 - 0.475,
      [](Accelerator& a, OneWeight& line, int shard) {
        const auto micro_batch = a.accumulate(line.model);
        a.backward(loss_of(line, shard));
        line.optimizer.step();
        line.net->zero_grad();  // not the prepared optimizer's
      },
      2);
  check_weight(
      1 - 0.25 - 0.475,
      [](Accelerator& a, OneWeight& line, int shard) {
        line.net->zero_grad();
        const auto micro_batch = a.accumulate(line.model);
        a.backward(loss_of(line, shard));
        line.optimizer.step();
      },
      2);
}

TEST_CASE("in exact mode gradients that are not dropped stay, and what the window adds comes to them once") {
  // 2.5, then 5: 0.25, then 0.5 + 0.225.
  check_weight(
      1 - 0.25 - 0.725,
      [](Accelerator& a, OneWeight& line, int shard) {
        const auto micro_batch = a.accumulate(line.model);
        a.backward(loss_of(line, shard));
        line.optimizer.step();
      },
      2);
}

TEST_CASE("in exact mode a window that ends early divides by its own length") {
  check_weight(0.75,
               [](Accelerator& a, OneWeight& line, int shard) {
                 const auto micro_batch = a.accumulate_and_close(line.model);
                 a.backward(loss_of(line, shard));
                 line.optimizer.step();
               },
               1, {.gradient_accumulation_steps = 3});
}

TEST_CASE(
    "in exact mode what ranks draw outside of any shard's work is the same on all, and shards have streams of their "
    "own") {
  for (const int ranks : {1, 2, 4}) {
    std::vector<double> outside(static_cast<std::size_t>(ranks));
    std::vector<double> of_shards(4);
    launch({.cpu = ranks, .exact = ExactOptions{.logical_ranks = 4}}, [&](Accelerator& accelerator) {
      OneWeight line(accelerator);
      outside[static_cast<std::size_t>(accelerator.rank())] = at::rand({}).item<double>();
      for (int shard = accelerator.rank(); shard < 4; shard += ranks) {
        const auto micro_batch = accelerator.accumulate(line.model);
        of_shards[static_cast<std::size_t>(shard)] = at::rand({}).item<double>();
      }
    });
    for (const double drawn : outside) CHECK(drawn == outside.front());
    std::vector<double> expected;
    for (int shard = 0; shard < 4; ++shard) {
      auto generator = at::make_generator<at::CPUGeneratorImpl>(rng::rank_seed(42, shard));
      expected.push_back(at::rand({}, generator).item<double>());
    }
    CHECK(of_shards == expected);
  }
}

TEST_CASE("in exact mode check_finite ends a training soon after a gradient that is not finite") {
  for (const int ranks : {1, 2}) {
    LaunchConfig config;
    config.gradient_reducer.check_finite = true;
    std::atomic<int> windows{0};
    const ShardBody body = [&](Accelerator& a, OneWeight& line, int shard) {
      const auto micro_batch = a.accumulate(line.model);
      a.backward(loss_of(line, shard) * (windows == 3 ? std::numeric_limits<double>::quiet_NaN() : 1.0));
      if (a.sync_gradients() && a.is_main()) windows += 1;
      line.optimizer.step();
      line.optimizer.zero_grad();
    };
    const auto train = [&] { weight_after(ranks, body, 1000, config); };
    CHECK(error_of<RankError>(train).find("is infinite or NaN") != std::string::npos);
    CHECK(windows < 1000);
  }
}

// ---- what is refused

TEST_CASE("exact mode refuses what depends on the number of ranks") {
  const auto refusal = [](const ShardBody& body, int ranks = 2) {
    return error_of<RankError>([&] { weight_after(ranks, body); });
  };
  const auto says = [](const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  says(refusal([](Accelerator& a, OneWeight& line, int shard) { a.backward(loss_of(line, shard)); }),
       "open accumulate() around forward");
  says(refusal([](Accelerator& a, OneWeight& line, int shard) {
         const auto alone = a.no_sync(line.model);
         const auto micro_batch = a.accumulate(line.model);
         a.backward(loss_of(line, shard));
       }),
       "no_sync");
  says(refusal([](Accelerator& a, OneWeight& line, int) { a.local_sgd(2, [&](nn::LocalSgd&) { (void)line; }); }),
       "local_sgd");
  says(refusal(
           [](Accelerator& a, OneWeight& line, int shard) {
             const auto micro_batch = a.accumulate(line.model);
             line.optimizer.step([&] {
               const at::Tensor loss = loss_of(line, shard);
               a.backward(loss);
               return loss;
             });
           },
           4),
       "step(closure)");
  for (const int ranks : {1, 4})
    says(refusal(
             [](Accelerator& a, OneWeight& line, int shard) {
               const auto micro_batch = a.accumulate(line.model);
               a.backward(loss_of(line, shard));
               line.optimizer.step();
               a.backward(loss_of(line, shard));
             },
             ranks),
         "a backward pass after optimizer.step()");
  says(refusal([](Accelerator& a, OneWeight& line, int shard) {
         const auto micro_batch = a.accumulate(line.model);
         a.backward(loss_of(line, shard));
         line.net->weight.mutable_grad().mul_(2);
         line.optimizer.step();
       }),
       "the gradient of weight was written to");
  says(refusal([](Accelerator& a, OneWeight& line, int shard) {
         const auto micro_batch = a.accumulate(line.model);
         if (shard < 2) a.backward(loss_of(line, shard));
         line.optimizer.step();
       }),
       "has made no backward pass");
  says(refusal([](Accelerator& a, OneWeight& line, int shard) {
         const auto micro_batch = a.accumulate(line.model);
         if (shard >= 2) a.backward(loss_of(line, shard));
         line.optimizer.step();
       }),
       "has made no backward pass");
}

TEST_CASE("exact mode refuses two micro-batches of one batch, and a loop that leaves a global batch in its middle") {
  const auto train = [](int accumulates, bool leaves) {
    return error_of<RankError>([&] {
      launch({.cpu = 2, .exact = ExactOptions{.logical_ranks = 4}}, [&](Accelerator& accelerator) {
        OneWeight line(accelerator);
        auto loader = accelerator.prepare(data::DataLoader(Sentences(40).map(torch::data::transforms::Stack<>()), {}));
        for (int epoch = 0; epoch < 2; ++epoch)
          for (auto& batch : loader) {
            for (int i = 0; i < accumulates; ++i) {
              const auto micro_batch = accelerator.accumulate(line.model);
              accelerator.backward(loss_of(line, static_cast<int>(batch.target.size(0))));
            }
            if (leaves) break;
          }
      });
    });
  };
  CHECK(train(2, false).find("each batch of a loader is one micro-batch") != std::string::npos);
  CHECK(train(1, true).find("leave no global batch in its middle") != std::string::npos);
  CHECK(train(1, false).empty());
}

TEST_CASE("exact mode needs a power of two, and ranks that divide it") {
  const auto refusal = [](int ranks, int logical) {
    return error_of<ConfigError>(
        [&] { launch({.cpu = ranks, .exact = ExactOptions{.logical_ranks = logical}}, [](Accelerator&) {}); });
  };
  CHECK(refusal(2, 6).find("exact.logical_ranks 6 is no power of two") != std::string::npos);
  CHECK(refusal(2, 0).find("no power of two") != std::string::npos);
  CHECK(refusal(3, 8).find("3 ranks do not divide the 8 logical ranks of exact mode; use 2 ranks") !=
        std::string::npos);
  CHECK(refusal(8, 4).find("use 4 ranks") != std::string::npos);
  CHECK(refusal(4, 4).empty());
}

TEST_CASE(
    "exact mode takes LibTorch's deterministic algorithms, names an operator that has none, and sets back what was") {
  at::globalContext().setDeterministicAlgorithms(false, false);
  const std::string text = error_of<RankError>([] {
    launch({.cpu = 2, .exact = ExactOptions{}},
           [](Accelerator&) { at::zeros({4}).put_(at::zeros({2}, at::kLong), at::ones({2}), /*accumulate=*/false); });
  });
  INFO(text);
  CHECK(text.find("put_") != std::string::npos);
  CHECK(!at::globalContext().deterministicAlgorithms());
  // Beside a launch that wants it otherwise.
  launch({.cpu = 1}, [](Accelerator&) {
    std::thread([] {
      CHECK(error_of<ConfigError>([] {
              launch({.cpu = 1, .exact = ExactOptions{}}, [](Accelerator&) {});
            }).find("in exact mode while one runs that is not") != std::string::npos);
      CHECK(error_of<ConfigError>([] { launch({.cpu = 1}, [](Accelerator&) {}); }).empty());
    }).join();
  });
}
