// Exact mode: what comes of a training is the same bits on any number of ranks.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

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

TEST_CASE("it is where only some of the shards have sparse gradients, with several entries of one place") {
  const auto check = [](int logical_ranks, unsigned with, bool sums) {
    CAPTURE(logical_ranks, with, sums);
    const std::string on_one = bits_of_lookups({.cpu = 1}, logical_ranks, with, sums);
    REQUIRE(!on_one.empty());
    for (int ranks = 2; ranks <= logical_ranks; ranks *= 2) {
      CAPTURE(ranks);
      CHECK((bits_of_lookups({.cpu = ranks}, logical_ranks, with, sums) == on_one));
    }
  };
  for (unsigned with = 0; with < 16; ++with) check(4, with, with % 2 == 1);
  for (const unsigned with : {0x01U, 0x08U, 0x80U, 0x11U, 0x5aU, 0xffU}) check(8, with, true);
  // Shards without samples.
  for (const std::int64_t samples : {45, 33}) {
    const ExactRun run{.layers = Layers::sparse, .stepper = Stepper::adagrad, .samples = samples, .even = false};
    check_same_bits(run);
    ExactRun joined = run;
    joined.joins = true;
    joined.accumulation = 2;
    check_same_bits(joined);
  }
}

namespace {

// Trains `times` times in each of a few ways on 1, 2, 4 and 8 ranks, disturbed.
void check_disturbed(int times) {
  const ExactRun runs[] = {
      {.clip = true, .workers = 2},
      {.layers = Layers::sparse, .stepper = Stepper::adagrad, .accumulation = 2, .even = false, .joins = true},
      {.layers = Layers::attention, .dispatch = true, .precision = Precision::bf16},
      {.layers = Layers::memory, .accumulation = 3, .iterable = true, .clip = true, .sums = true}};
  const int delays = Disturbance::delays();
  for (const ExactRun& run : runs) {
    const std::string undisturbed = bits_of(run, 1);
    REQUIRE(undisturbed.size() > 1000);
    for (int time = 0; time < times; ++time) {
      const Disturbance disturbance(static_cast<unsigned>(time + 1), 2);
      for (const int ranks : {1, 2, 4, 8}) {
        CAPTURE(&run - runs, time, ranks);
        CHECK((bits_of(run, ranks) == undisturbed));
      }
    }
  }
  CHECK(Disturbance::delays() > delays + 100 * times);
}

}  // namespace

TEST_CASE("it is while other threads have the cores and ranks sleep at random") { check_disturbed(1); }

TEST_CASE("it is twenty times while other threads have the cores and ranks sleep at random", "[.long-disturbed]") {
  check_disturbed(20);
}

TEST_CASE("in exact mode CPU ranks have weights and reduced gradients once, and divide updates") {
  for (const bool shares : {true, false}) {
    LaunchConfig config{.cpu = 2, .exact = ExactOptions{.logical_ranks = 4}};
    config.sharding = shares ? Sharding::automatic : Sharding::none;
    config.gradient_reducer.share_gradients = shares;
    std::vector<std::vector<const void*>> memory(2);
    launch(config, [&](Accelerator& a) {
      torch::nn::Linear net(8, 3);
      torch::optim::AdamW inner(net->parameters(), torch::optim::AdamWOptions(0.01));
      auto [model, optimizer] = a.prepare(net, inner);
      for (int sub_step = 0; sub_step < 4; ++sub_step) {
        const auto micro_batch = a.accumulate(model);
        a.backward(model(at::randn({4, 8})).square().mean());
        if (a.sync_gradients())
          memory[static_cast<std::size_t>(a.rank())].push_back(net->weight.grad().const_data_ptr());
        a.clip_grad_norm_(model, 0.1);
        optimizer.step();
        optimizer.zero_grad();
      }
      memory[static_cast<std::size_t>(a.rank())].push_back(net->weight.const_data_ptr());
      const auto& state =
          static_cast<torch::optim::AdamWParamState&>(*inner.state().at(net->weight.unsafeGetTensorImpl()));
      memory[static_cast<std::size_t>(a.rank())].push_back(state.exp_avg().const_data_ptr());
      a.wait_for_everyone();
    });
    REQUIRE(memory[0].size() == 4);
    for (std::size_t i = 0; i < 4; ++i) CHECK((memory[0][i] == memory[1].at(i)) == shares);
  }
}

TEST_CASE("in exact mode what the program writes to, and keeps of, a reduced gradient is its own") {
  std::vector<double> expected;
  for (const int ranks : {1, 2, 4}) {
    std::vector<double> seen;
    launch({.cpu = ranks, .exact = ExactOptions{.logical_ranks = 4}}, [&](Accelerator& a) {
      torch::nn::Linear net(3, 2);
      torch::optim::SGD inner(net->parameters(), torch::optim::SGDOptions(0.1));
      auto [model, optimizer] = a.prepare(net, inner);
      std::vector<at::Tensor> kept;
      for (int window = 0; window < 4; ++window)
        for (int shard = a.rank(); shard < 4; shard += ranks) {
          const auto micro_batch = a.accumulate(model);
          a.backward(model(at::full({2, 3}, 1.0 + window + shard)).square().mean());
          if (a.sync_gradients()) {
            kept.push_back(net->weight.grad());
            if (window == 1) net->weight.mutable_grad().mul_(2);
            if (window == 2) net->weight.mutable_grad().add_(a.rank());  // ranks train on with other weights
          }
          optimizer.step();
          optimizer.zero_grad();
        }
      if (!a.is_main()) return;
      for (const at::Tensor& gradient : kept) seen.push_back(gradient.sum().item<double>());
      seen.push_back(net->weight.sum().item<double>());
    });
    if (expected.empty()) expected = seen;
    REQUIRE(seen.size() == 5);
    // Of the last window only the first rank's shards have its weights.
    seen.resize(3), expected.resize(3);
    CHECK(seen == expected);
  }
}

namespace {

// Rows of floats whose batches are views of memory that begins `begin` floats after what LibTorch would give.
struct Rows : torch::data::datasets::BatchDataset<Rows, torch::data::Example<>> {
  at::Tensor memory = at::empty({64 * 512 + 32});
  at::Tensor rows;

  explicit Rows(std::int64_t begin) : rows(memory.narrow(0, begin, 64 * 512).view({64, 512})) {
    rows.copy_(at::randn({64, 512}, at::make_generator<at::CPUGeneratorImpl>(3)));
  }
  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
    const auto first = static_cast<std::int64_t>(indices.front()), count = static_cast<std::int64_t>(indices.size());
    return {rows.narrow(0, first, count), at::arange(first, first + count).remainder(10)};
  }
  std::optional<std::size_t> size() const override { return 64; }
};

}  // namespace

TEST_CASE("in exact mode it does not matter where the memory of a dataset's batches begins") {
  const auto weights_with = [](std::int64_t begin, int ranks) {
    std::string weights;
    launch({.cpu = ranks, .exact = ExactOptions{.logical_ranks = 4}}, [&](Accelerator& a) {
      torch::nn::Linear net(512, 10);
      torch::optim::SGD inner(net->parameters(), torch::optim::SGDOptions(0.1));
      auto [model, optimizer, loader] = a.prepare(net, inner, data::DataLoader(Rows(begin), {.batch_size = 16}));
      for (auto& batch : loader) {
        const auto micro_batch = a.accumulate(model);
        a.backward(torch::nn::functional::cross_entropy(model(batch.data), batch.target));
        optimizer.step();
        optimizer.zero_grad();
      }
      Bits bits;
      for (const at::Tensor& parameter : net->parameters()) bits.add(parameter);
      if (a.is_main()) weights = bits.bytes();
    });
    return weights;
  };
  const std::string expected = weights_with(0, 1);
  REQUIRE(!expected.empty());
  for (std::int64_t begin = 1; begin < 18; ++begin) {
    CAPTURE(begin);
    CHECK((weights_with(begin, begin % 2 == 0 ? 1 : 4) == expected));
  }
}

namespace {

// Calls `compute` with its inputs in memory that begins at several multiples of 64 bytes, as all of LibTorch's does.
// What comes out, and its gradients, must be the same bits, or exact mode cannot keep what it promises.
void check_addresses(const char* name, at::ScalarType type, const std::vector<std::vector<std::int64_t>>& sizes,
                     const std::function<at::Tensor(const std::vector<at::Tensor>&)>& compute) {
  CAPTURE(name, c10::toString(type));
  std::vector<at::Tensor> values;
  for (const auto& its : sizes)
    values.push_back(at::randn(its, at::make_generator<at::CPUGeneratorImpl>(values.size())).to(type));
  std::string expected;
  for (const std::int64_t bytes : {0, 64, 192, 448, 1088, 4032}) {
    const std::int64_t begin = bytes / static_cast<std::int64_t>(c10::elementSize(type));
    std::vector<at::Tensor> inputs;
    for (const at::Tensor& value : values) {
      const at::Tensor memory = at::empty({begin + value.numel()}, value.options());
      inputs.push_back(memory.narrow(0, begin, value.numel()).view(value.sizes()).copy_(value).detach());
      inputs.back().requires_grad_();
    }
    const at::Tensor output = compute(inputs);
    output.sin().sum().backward();
    Bits bits;
    bits.add(output);
    for (const at::Tensor& input : inputs) bits.add(input.grad());
    if (expected.empty()) expected = bits.bytes();
    CAPTURE(bytes);
    CHECK((bits.bytes() == expected));
  }
}

}  // namespace

TEST_CASE("LibTorch's kernels give the same bits wherever memory begins that it allocates") {
  using Tensors = const std::vector<at::Tensor>&;
  at::set_num_threads(1);
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const auto check = [type](const char* name, const std::vector<std::vector<std::int64_t>>& sizes,
                              const auto& compute) { check_addresses(name, type, sizes, compute); };
    for (const std::int64_t m : {1, 5, 16})
      for (const auto& [k, n] : {std::pair<std::int64_t, std::int64_t>{784, 512}, {129, 65}, {512, 10}, {7, 3}}) {
        check("linear", {{m, k}, {n, k}, {n}}, [](Tensors in) { return at::linear(in[0], in[1], in[2]); });
        check("matmul", {{m, k}, {k, n}}, [](Tensors in) { return at::matmul(in[0], in[1]); });
        check("addmm", {{n}, {m, k}, {k, n}}, [](Tensors in) { return at::addmm(in[0], in[1], in[2]); });
        check("bmm", {{3, m, k}, {3, k, n}}, [](Tensors in) { return at::bmm(in[0], in[1]); });
      }
    check("mv", {{37, 129}, {129}}, [](Tensors in) { return at::mv(in[0], in[1]); });
    check("dot", {{1001}, {1001}}, [](Tensors in) { return at::dot(in[0], in[1]); });
    for (const std::int64_t side : {7, 28})
      check("conv2d", {{2, 3, side, side}, {8, 3, 3, 3}, {8}},
            [](Tensors in) { return at::conv2d(in[0], in[1], in[2], 1, 1); });
    check("layer_norm", {{5, 77}, {77}, {77}}, [](Tensors in) { return at::layer_norm(in[0], {77}, in[1], in[2]); });
    check("batch_norm", {{5, 7, 6, 6}, {7}, {7}},
          [](Tensors in) { return at::batch_norm(in[0], in[1], in[2], {}, {}, /*training=*/true, 0.1, 1e-5, false); });
    check("softmax", {{9, 77}}, [](Tensors in) { return at::softmax(in[0], 1); });
    check("sum", {{9, 77}}, [](Tensors in) { return in[0].sum() + in[0].mean() + in[0].sum(0).norm(); });
    check("embedding", {{11, 13}},
          [](Tensors in) { return at::embedding(in[0], at::arange(40).mul(7).remainder(11)); });
    for (const std::int64_t width : {4, 16, 33, 64})
      check("attention", {{2, 3, 33, width}, {2, 3, 33, width}, {2, 3, 33, width}}, [](Tensors in) {
        return at::scaled_dot_product_attention(in[0], in[1], in[2], {}, 0.0, /*is_causal=*/true);
      });
    for (const std::int64_t width : {8, 20})
      check("lstm", {{7, 3, width}, {4 * width, width}, {4 * width, width}, {4 * width}, {4 * width}}, [&](Tensors in) {
        const at::Tensor zeros = at::zeros({1, 3, in[0].size(2)}, in[0].options());
        return std::get<0>(
            at::lstm(in[0], {zeros, zeros}, {in[1], in[2], in[3], in[4]}, true, 1, 0.0, true, false, false));
      });
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
