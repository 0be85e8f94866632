// Exact mode: what comes of a training is the same bits on any number of ranks.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>

#include "runtime/exact_networks.h"
#include "support/error_of.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;

namespace {

void check_same_bits(const ExactRun& run) {
  const std::string on_one = bits_of(run, 1);
  REQUIRE(on_one.size() > 1000);
  for (int ranks = 2; ranks <= run.logical_ranks; ranks *= 2) {
    CAPTURE(ranks, static_cast<int>(run.layers), run.accumulation);
    CHECK((bits_of(run, ranks) == on_one));
  }
}

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("a training is the same bits on 1, 2, 4 and 8 ranks, whatever its layers are made of") {
  const auto layers = GENERATE(Layers::linear, Layers::batch_norm, Layers::convolution, Layers::recurrent,
                               Layers::attention, Layers::sparse, Layers::memory, Layers::renormed);
  CAPTURE(static_cast<int>(layers));
  // The others of LibTorch's take no sparse gradients.
  const Stepper stepper = layers == Layers::sparse ? Stepper::adagrad : Stepper::adamw;
  check_same_bits({.layers = layers, .stepper = stepper});
  check_same_bits({.layers = layers, .stepper = stepper, .accumulation = 3});
}

TEST_CASE("it is with parts that are computed again, and the same bits as without") {
  const auto layers =
      GENERATE(Layers::batch_norm, Layers::recurrent, Layers::attention, Layers::memory, Layers::renormed);
  CAPTURE(static_cast<int>(layers));
  const std::string without = bits_of({.layers = layers, .accumulation = 3}, 1);
  for (int ranks : {1, 4})
    CHECK((bits_of({.layers = layers, .accumulation = 3, .checkpointed = true}, ranks) == without));
}

TEST_CASE("it is with every optimizer") {
  const auto stepper =
      GENERATE(Stepper::sgd, Stepper::adam, Stepper::adagrad, Stepper::rmsprop, Stepper::adamw_not_fused);
  CAPTURE(static_cast<int>(stepper));
  check_same_bits({.stepper = stepper, .clip = true});
}

TEST_CASE("it is however the data comes") {
  check_same_bits({.dispatch = true});
  check_same_bits({.dispatch = true, .split = true});
  check_same_bits({.iterable = true});
  check_same_bits({.iterable = true, .workers = 2});
  check_same_bits({.dispatch = true, .iterable = true});
  check_same_bits({.shuffle = false, .drop_last = true, .workers = 2});
  check_same_bits({.samples = 3});
  check_same_bits({.samples = 48});
  check_same_bits({.split = true});
}

TEST_CASE("it is in every precision, and with losses that are sums") {
  check_same_bits({.clip = true, .precision = Precision::bf16});
  check_same_bits({.layers = Layers::linear, .accumulation = 2, .clip = true, .precision = Precision::fp16});
  check_same_bits({.accumulation = 2, .sums = true});
  check_same_bits({.layers = Layers::linear, .batch_size = 3, .even = false, .sums = true});
  check_same_bits({.layers = Layers::linear, .batch_size = 3, .accumulation = 2, .even = false});
}

TEST_CASE("it is where ranks take different numbers of steps in join_uneven_inputs") {
  // 45 samples leave 13 for the last global batch: 6 shards and half of one. 33 leave one.
  const std::int64_t samples = GENERATE(45, 33, 1);
  CAPTURE(samples);
  for (const auto layers : {Layers::linear, Layers::memory}) {
    check_same_bits({.layers = layers, .samples = samples, .even = false, .joins = true});
    check_same_bits(
        {.layers = layers, .samples = samples, .accumulation = 2, .even = false, .sums = true, .joins = true});
    check_same_bits(
        {.layers = layers, .samples = samples, .accumulation = 3, .even = false, .clip = true, .joins = true});
  }
}

TEST_CASE("random trainings are the same bits on any number of ranks") {
  std::mt19937 random(11);
  const auto pick = [&](int count) { return static_cast<int>(random() % static_cast<unsigned>(count)); };
  for (int trial = 0; trial < 8; ++trial) {
    CAPTURE(trial);
    ExactRun run{.layers = static_cast<Layers>(pick(5) + (pick(4) == 0 ? 3 : 0)),
                 .stepper = static_cast<Stepper>(pick(6)),
                 .samples = 1 + pick(70),
                 .batch_size = 2 + pick(3),
                 .accumulation = 1 + pick(3),
                 .shuffle = pick(2) == 0,
                 .dispatch = pick(3) == 0,
                 .iterable = pick(3) == 0,
                 .drop_last = pick(4) == 0,
                 .clip = pick(2) == 0,
                 .sums = pick(3) == 0,
                 .logical_ranks = 1 << (1 + pick(3))};
    if (run.layers == Layers::batch_norm) run.layers = Layers::memory;  // batches of one sample have no norm
    if (run.layers == Layers::sparse) run.stepper = Stepper::adagrad;
    run.split = !run.iterable && pick(3) == 0;
    const std::string on_one = bits_of(run, 1);
    for (int ranks = 2; ranks <= run.logical_ranks; ranks *= 2) CHECK((bits_of(run, ranks) == on_one));
  }
}

TEST_CASE("checkpoints are the same files on any number of ranks, and go on from one number to another") {
  const TempDir directory;
  const auto path = [&](int ranks) { return directory / std::to_string(ranks); };
  const ExactRun whole{.epochs = 3, .clip = true};
  const std::string straight = bits_of(whole, 2);
  std::map<std::string, std::string> files;
  for (const int ranks : {1, 2, 8}) {
    ExactRun first = whole;
    first.stop_after = 4;  // in the middle of an epoch
    first.save_to = path(ranks);
    bits_of(first, ranks);
    for (const auto& file : std::filesystem::directory_iterator(path(ranks))) {
      const std::string name = file.path().filename().string();
      if (name == "manifest.json") continue;  // says how many ranks there were
      const std::string bytes = read(file.path());
      if (ranks == 1)
        files[name] = bytes;
      else
        CHECK((files.at(name) == bytes));
    }
  }
  CHECK(files.contains("tandem_state.json"));
  for (const int ranks : {1, 4, 8}) {
    ExactRun rest = whole;
    rest.load_from = path(ranks == 4 ? 1 : 2);
    const std::string resumed = bits_of(rest, ranks);
    CAPTURE(ranks);
    REQUIRE(resumed.size() < straight.size());
    CHECK((straight.substr(straight.size() - resumed.size()) == resumed));
  }
}

TEST_CASE("a checkpoint of another number of logical ranks or threads is refused in exact mode") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  ExactRun run{.epochs = 1, .stop_after = 1, .save_to = path};
  bits_of(run, 2);
  run = {.logical_ranks = 4, .load_from = path};
  CHECK(error_of<RankError>([&] { bits_of(run, 2); }).find("is of 8 logical ranks, and this training has 4") !=
        std::string::npos);
  run = {.load_from = path};
  LaunchConfig config = run.config(2);
  config.threads_per_rank = 2;
  const auto resume = [&] { launch(config, [&](Accelerator& a) { ExactTrainer(a, run).train(); }); };
  CHECK(error_of<RankError>(resume).find("with 1 threads a rank, and this training has 2") != std::string::npos);
}

// ---- what windows and gradients do

namespace {

struct Line {
  torch::nn::Linear net{torch::nn::LinearOptions(1, 1).bias(false)};
  std::unique_ptr<torch::optim::Optimizer> inner;
  nn::Model<torch::nn::LinearImpl> model;
  optim::AcceleratedOptimizer optimizer;

  explicit Line(Accelerator& accelerator)
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
using Body = std::function<void(Accelerator&, Line&, int shard)>;

double weight_after(int ranks, const Body& body, int rounds = 1, LaunchConfig config = {}) {
  config.cpu = ranks;
  config.exact = ExactOptions{.logical_ranks = 4};
  double weight = 0;
  launch(config, [&](Accelerator& accelerator) {
    Line line(accelerator);
    for (int round = 0; round < rounds; ++round)
      for (int shard = accelerator.rank(); shard < 4; shard += ranks) body(accelerator, line, shard);
    if (accelerator.is_main()) weight = line.net->weight.item<double>();
  });
  return weight;
}

at::Tensor loss_of(Line& line, int shard) { return line.model(at::full({1, 1}, shard + 1.0)).sum(); }

void check_weight(double expected, const Body& body, int rounds = 1, const LaunchConfig& config = {}) {
  for (const int ranks : {1, 2, 4}) {
    CAPTURE(ranks);
    CHECK(weight_after(ranks, body, rounds, config) == Approx(expected).epsilon(1e-6));
  }
}

}  // namespace

TEST_CASE("in exact mode a shard's passes add up, and gradients are dropped with the update") {
  // The mean gradient is 2.5, of which SGD takes a tenth.
  check_weight(0.75, [](Accelerator& a, Line& line, int shard) {
    const auto micro_batch = a.accumulate(line.model);
    line.optimizer.zero_grad();  // first
    a.backward(loss_of(line, shard));
    line.optimizer.step();
  });
  check_weight(0.5, [](Accelerator& a, Line& line, int shard) {  // two passes
    const auto micro_batch = a.accumulate(line.model);
    a.backward(loss_of(line, shard));
    a.backward(loss_of(line, shard));
    line.optimizer.step();
    line.optimizer.zero_grad();  // last
  });
  // Momentum is 0.9: 0.25, then 0.25 + 0.225.
  check_weight(
      1 - 0.25 - 0.475,
      [](Accelerator& a, Line& line, int shard) {
        const auto micro_batch = a.accumulate(line.model);
        a.backward(loss_of(line, shard));
        line.optimizer.step();
        line.net->zero_grad();  // not the prepared optimizer's
      },
      2);
  check_weight(
      1 - 0.25 - 0.475,
      [](Accelerator& a, Line& line, int shard) {
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
      [](Accelerator& a, Line& line, int shard) {
        const auto micro_batch = a.accumulate(line.model);
        a.backward(loss_of(line, shard));
        line.optimizer.step();
      },
      2);
}

TEST_CASE("in exact mode a window that ends early divides by its own length") {
  check_weight(0.75,
               [](Accelerator& a, Line& line, int shard) {
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
      Line line(accelerator);
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

// ---- what is refused

TEST_CASE("exact mode refuses what depends on the number of ranks") {
  const auto refusal = [](const Body& body, int ranks = 2) {
    return error_of<RankError>([&] { weight_after(ranks, body); });
  };
  const auto says = [](const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  says(refusal([](Accelerator& a, Line& line, int shard) { a.backward(loss_of(line, shard)); }),
       "open accumulate() around forward");
  says(refusal([](Accelerator& a, Line& line, int shard) {
         const auto alone = a.no_sync(line.model);
         const auto micro_batch = a.accumulate(line.model);
         a.backward(loss_of(line, shard));
       }),
       "no_sync");
  says(refusal([](Accelerator& a, Line& line, int) { a.local_sgd(2, [&](nn::LocalSgd&) { (void)line; }); }),
       "local_sgd");
  says(refusal(
           [](Accelerator& a, Line& line, int shard) {
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
             [](Accelerator& a, Line& line, int shard) {
               const auto micro_batch = a.accumulate(line.model);
               a.backward(loss_of(line, shard));
               line.optimizer.step();
               a.backward(loss_of(line, shard));
             },
             ranks),
         "a backward pass after optimizer.step()");
  says(refusal([](Accelerator& a, Line& line, int shard) {
         const auto micro_batch = a.accumulate(line.model);
         a.backward(loss_of(line, shard));
         line.net->weight.mutable_grad().mul_(2);
         line.optimizer.step();
       }),
       "the gradient of weight was written to");
  says(refusal([](Accelerator& a, Line& line, int shard) {
         const auto micro_batch = a.accumulate(line.model);
         if (shard < 2) a.backward(loss_of(line, shard));
         line.optimizer.step();
       }),
       "has made no backward pass");
  says(refusal([](Accelerator& a, Line& line, int shard) {
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
        Line line(accelerator);
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
