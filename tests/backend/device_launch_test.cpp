// Whole launches on GPU ranks, with a fake CUDA and a fake NCCL, beside the same on CPU ranks.
#include <cstdlib>
#include <limits>
#include <map>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "support/fake_machine.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;
using Catch::Matchers::ContainsSubstring;

namespace {

namespace F = torch::nn::functional;

struct Placement {
  std::vector<int> devices;
  Transport transport = Transport::automatic;
};

Placement placement() {
  return GENERATE(values<Placement>({{{0}},
                                     {{0}, Transport::nccl},
                                     {{0, 1}},
                                     {{1, 0, 3}},
                                     {{2, 5, 6, 7}, Transport::nccl},
                                     {{0, 1, 2, 3}, Transport::peer_memory},
                                     {{0, 0}},
                                     {{1, 1, 0, 0}}}));
}

struct Data {
  at::Tensor inputs, targets;
};

Data make_data() {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  return {at::randn({96, 6}, generator), at::randint(0, 3, {96}, generator, at::kLong)};
}

struct Setup {
  bool adamw = true;
  int accumulation = 1;
  bool clip = false;
  double dropout = 0;
  Precision precision = Precision::no;
};

struct Trained {
  std::vector<double> losses;
  std::vector<at::Tensor> weights;
  bool operator==(const Trained& other) const {
    return losses == other.losses &&
           std::equal(weights.begin(), weights.end(), other.weights.begin(),
                      [](const at::Tensor& a, const at::Tensor& b) { return at::equal(a, b); });
  }
};

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Setup& setup, const torch::nn::Sequential& net) {
  // Rates that float32 has: GPUs take them in that.
  const double rate = setup.adamw ? 1.0 / 128 : 1.0 / 8;
  if (setup.adamw) return std::make_unique<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(rate));
  return std::make_unique<torch::optim::SGD>(net->parameters(), torch::optim::SGDOptions(rate).momentum(0.9));
}

// Trains on nodes of these configurations; what rank 0 has in the end.
Trained train_on_nodes(std::vector<LaunchConfig> of_nodes, const Setup& setup) {
  for (LaunchConfig& config : of_nodes) {
    config.gradient_accumulation_steps = setup.accumulation;
    config.mixed_precision = setup.precision;
    config.threads_per_rank = 1;  // a node takes as many as its ranks leave
  }
  Trained trained;
  const Data data = make_data();
  const auto body = [&](Accelerator& a) {
    torch::nn::Sequential net(torch::nn::Linear(6, 16), torch::nn::Tanh(), torch::nn::Dropout(setup.dropout),
                              torch::nn::BatchNorm1d(16), torch::nn::Linear(16, 3));
    const auto inner = make_optimizer(setup, net);
    auto model = a.prepare(net);
    auto optimizer = a.prepare(*inner);
    auto loader =
        a.prepare(data::DataLoader(data::TensorDataset(data.inputs, data.targets), {.batch_size = 8, .shuffle = true}));
    for (int epoch = 0; epoch < 2; ++epoch)
      for (auto& batch : loader) {
        const auto scope = a.accumulate(model);
        auto loss = F::cross_entropy(model(batch.data), batch.target);
        a.backward(loss);
        if (setup.clip && a.sync_gradients()) a.clip_grad_norm_(net->parameters(), 1.0);
        optimizer.step();
        optimizer.zero_grad();
        const at::Tensor losses = a.gather_for_metrics(loss.detach().reshape({1}));
        if (a.is_main()) trained.losses.push_back(losses.mean().item<double>());
      }
    if (a.is_main())
      for (const auto& weight : net->parameters()) trained.weights.push_back(weight.detach().to(at::kCPU, true));
  };
  if (of_nodes.size() == 1)
    launch(of_nodes[0], body);
  else
    for (const auto& error : try_to_launch_nodes(of_nodes, body)) CHECK(text_of_error(error) == "");
  return trained;
}

Trained train(const LaunchConfig& config, const Setup& setup) { return train_on_nodes({config}, setup); }

}  // namespace

TEST_CASE("training on GPU ranks gives what it gives on CPU ranks") {
  const Placement where = placement();
  const Setup setup = GENERATE(values<Setup>({{.adamw = true}, {.adamw = false, .accumulation = 2}}));
  CAPTURE(where.devices, static_cast<int>(where.transport), setup.adamw);
  fake::reset();
  const Machine machine;
  const Trained on_gpus = train(machine.config(where.devices, where.transport), setup);
  const Trained on_cpu = train({.cpu = static_cast<int>(where.devices.size())}, setup);
  CHECK(on_gpus == on_cpu);
  machine.check_clean();
}

TEST_CASE("the norm of GPU ranks' gradients is that of CPU ranks but for rounding") {
  const Placement where = placement();
  CAPTURE(where.devices, static_cast<int>(where.transport));
  fake::reset();
  const Machine machine;
  const Setup setup{.clip = true};
  const Trained on_gpus = train(machine.config(where.devices, where.transport), setup);
  const Trained on_cpu = train({.cpu = static_cast<int>(where.devices.size())}, setup);
  REQUIRE(on_gpus.losses.size() == on_cpu.losses.size());
  for (std::size_t i = 0; i < on_cpu.losses.size(); ++i)
    CHECK(on_gpus.losses[i] == Approx(on_cpu.losses[i]).epsilon(1e-6));
  machine.check_clean();
}

TEST_CASE("what a GPU rank draws does not depend on where the other ranks are") {
  fake::reset();
  const Machine machine;
  const Setup setup{.dropout = 0.3};
  const Trained apart = train(machine.config({0, 1, 2}), setup);
  CHECK(apart == train(machine.config({5, 5, 5}), setup));
  CHECK(apart == train(machine.config({3, 4, 3}), setup));
  CHECK_FALSE(apart == train(machine.config({0, 1, 2}), {.accumulation = 2, .dropout = 0.3}));
  machine.check_clean();
}

TEST_CASE("operators that take no generator draw the rank's numbers and leave the process's alone") {
  const Machine machine;
  at::Generator process = at::globalContext().defaultGenerator(fake::device(0));
  const at::Tensor before = process.get_state();
  std::array<at::Tensor, 2> drawn, expected;
  launch(machine.config({0, 0}), [&](Accelerator& a) {
    const auto rank = static_cast<std::size_t>(a.rank());
    const auto ones = at::ones({1000}, a.device());
    drawn[rank] = std::get<1>(at::native_dropout(ones, 0.5, true)).cpu();
    rng::manual_seed(rng::rank_seed(42, a.rank()));
    expected[rank] = std::get<1>(at::native_dropout(ones, 0.5, true)).cpu();
  });
  for (std::size_t rank = 0; rank < 2; ++rank) CHECK(at::equal(drawn[rank], expected[rank]));
  CHECK_FALSE(at::equal(drawn[0], drawn[1]));
  CHECK(at::equal(process.get_state(), before));
}

TEST_CASE("torch::manual_seed in the body of a GPU rank seeds what it draws on its GPU and on the CPU") {
  const Machine machine;
  std::array<std::vector<at::Tensor>, 2> seeded, expected;
  launch(machine.config({0, 0}), [&](Accelerator& a) {
    const auto rank = static_cast<std::size_t>(a.rank());
    const auto draw = [&] {
      return std::vector<at::Tensor>{at::rand({8}, a.device()).cpu(), at::rand({8}),
                                     std::get<1>(at::native_dropout(at::ones({100}, a.device()), 0.5, true)).cpu()};
    };
    torch::manual_seed(8 + rank);
    seeded[rank] = draw();
    rng::manual_seed(8 + rank);
    expected[rank] = draw();
  });
  for (std::size_t rank = 0; rank < 2; ++rank)
    for (std::size_t i = 0; i < 3; ++i) CHECK(at::equal(seeded[rank][i], expected[rank][i]));
  CHECK_FALSE(at::equal(seeded[0][0], seeded[1][0]));
}

TEST_CASE("what is drawn for a key on a GPU depends on the key only, and is nobody else's") {
  const Machine machine;
  at::Generator process = at::globalContext().defaultGenerator(fake::device(0));
  const at::Tensor before = process.get_state();
  const auto draw = [](int device) { return at::rand({8}, fake::device(device)).cpu(); };
  std::vector<at::Tensor> drawn;
  {
    rng::KeyedGenerator generator(3, 1, 4);
    drawn.push_back(draw(0));
    CHECK_FALSE(at::equal(draw(0), drawn[0]));
    generator.restart(5);
    CHECK_FALSE(at::equal(draw(0), drawn[0]));
    generator.restart(4);
    drawn.push_back(draw(0));
    drawn.push_back(draw(1));
  }
  auto generators = rng::make_generators(7, 1, fake::device(0));
  const at::Tensor own = generators.cuda[0].get_state();
  const rng::DefaultGeneratorGuard guard(generators);
  {
    const rng::KeyedGenerator generator(3, 1, 4);
    drawn.push_back(draw(0));
  }
  for (const at::Tensor& one : drawn) CHECK(at::equal(one, drawn[0]));
  CHECK(at::equal(generators.cuda[0].get_state(), own));
  CHECK(at::equal(process.get_state(), before));
}

TEST_CASE("a GPU rank computes on its device, on a stream of its own, after what was enqueued before the launch") {
  fake::reset();
  const Machine machine;
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  const at::Tensor before = at::ones({100}, fake::device(3));
  std::array<c10::Stream, 2> streams{guard.getDefaultStream(fake::device(3)), guard.getDefaultStream(fake::device(3))};
  std::array<at::Tensor, 2> results;
  launch(machine.config({3, 3}), [&](Accelerator& a) {
    const auto rank = static_cast<std::size_t>(a.rank());
    streams[rank] = guard.getStream(a.device());
    results[rank] = before + a.rank();
    if (guard.getDevice() != a.device()) throw std::logic_error("another device");
  });
  CHECK(streams[0] != streams[1]);
  CHECK(streams[0] != guard.getDefaultStream(fake::device(3)));
  CHECK(guard.getDevice() == fake::device(0));
  // The ranks' results are there for whoever launched them, on any stream.
  CHECK((results[0] + results[1]).sum().item<double>() == 300);
  CHECK(fake::races() == std::vector<std::string>{});
}

TEST_CASE("small all-reduces go through peers' memory where that works, and results are the same") {
  struct Case {
    std::vector<int> devices;
    Transport transport;
    bool access, works;
    std::string error;
  };
  const Case c = GENERATE(values<Case>({{{0, 1, 2}, Transport::automatic, true, true, ""},
                                        {{0, 1, 2}, Transport::automatic, false, true, ""},
                                        {{0, 1, 2}, Transport::automatic, true, false, ""},
                                        {{0, 1, 2}, Transport::nccl, true, true, ""},
                                        {{0, 1, 2}, Transport::peer_memory, true, true, ""},
                                        {{0, 1, 2}, Transport::peer_memory, false, true, "cannot reach"},
                                        {{0, 1, 2}, Transport::peer_memory, true, false, "cannot reach"},
                                        {{0, 0, 1}, Transport::automatic, true, true, ""},
                                        {{0, 0, 1}, Transport::automatic, false, true, "cannot reach"},
                                        {{0, 0, 1}, Transport::nccl, true, true, "NCCL 2.28 takes one rank a GPU"}}));
  CAPTURE(c.devices, static_cast<int>(c.transport), c.access, c.works);
  fake::reset();
  const Machine machine;
  machine.module->peer_access = c.access;
  machine.module->transport_works = c.works;
  std::vector<double> sums(3);
  LaunchConfig config = machine.config(c.devices, c.transport);
  std::string warning;
  config.on_warning = [&warning](const std::string& text) { warning += text; };
  const std::string error = machine.error_of(config, [&](Accelerator& a) {
    const at::Tensor value = at::full({1000}, 0.1 * (a.rank() + 1), a.device());
    sums[static_cast<std::size_t>(a.rank())] = a.reduce(value).sum().item<double>();
  });
  const bool goes_around = c.transport == Transport::automatic && c.error.empty() && !c.works;
  CHECK((warning.find("does not arrive") != std::string::npos) == goes_around);
  if (!c.error.empty()) {
    CHECK_THAT(error, ContainsSubstring(c.error));
  } else {
    CHECK(error == "");
    CHECK(sums == std::vector<double>(3, (at::full({1000}, 0.1) + 0.2 + 0.3).sum().item<double>()));
  }
  machine.check_clean();
}

TEST_CASE("a GPU rank that fails ends the others, and the next launch works") {
  const Placement where = placement();
  CAPTURE(where.devices, static_cast<int>(where.transport));
  fake::reset();
  const Machine machine;
  const int last = static_cast<int>(where.devices.size()) - 1;
  const std::string error = machine.error_of(machine.config(where.devices, where.transport), [&](Accelerator& a) {
    const at::Tensor value = at::ones({1000}, a.device());
    a.reduce(value);
    if (a.rank() == last) throw std::runtime_error("disk on fire");
    a.reduce(value);
  });
  CHECK_THAT(error, ContainsSubstring("rank " + std::to_string(last) + ": disk on fire"));
  CHECK(machine.error_of(machine.config(where.devices, where.transport),
                         [](Accelerator& a) { a.reduce(at::ones({1000}, a.device())); }) == "");
  machine.check_clean();
}

TEST_CASE("what NCCL has against a launch is its error") {
  const Machine machine;
  machine.module->fake_nccl->fail("init_rank", 1, static_cast<comm::nccl::Result>(2));
  const std::string error = machine.error_of(machine.config({4, 6}));
  CHECK_THAT(error, ContainsSubstring("rank 1 (GPU 6, fake)") && ContainsSubstring("ncclCommInitRankConfig"));
  machine.module->fake_nccl->fail("init_rank", 1, comm::nccl::Result::success);
  CHECK(machine.error_of(machine.config({4, 6})) == "");
}

TEST_CASE("GPUs that are not there, and settings that would hang, are errors before a rank starts") {
  const Machine machine;
  CHECK_THAT(machine.error_of(machine.config({8})),
             ContainsSubstring("device 8 does not exist; this machine has 8 GPUs"));
  CHECK_THAT(machine.error_of({.gpus = 9, .backend = machine.backend}),
             ContainsSubstring("gpus 9, but this machine has 8"));
  setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  CHECK_THAT(machine.error_of(machine.config({0, 1})), ContainsSubstring("CUDA_LAUNCH_BLOCKING is set"));
  CHECK(machine.error_of(machine.config({0})) == "");
  CHECK(machine.error_of(machine.config({0, 0})) == "");
  unsetenv("CUDA_LAUNCH_BLOCKING");
  CHECK(machine.error_of(machine.config({0, 1})) == "");
}

TEST_CASE("a GPU rank without memory ends all, and says what holds it") {
  fake::reset();
  const Machine machine;
  const auto train_until_full = [](Accelerator& a) {
    torch::nn::Linear net(100, 100);
    torch::optim::AdamW inner(net->parameters());
    auto model = a.prepare(net);
    auto optimizer = a.prepare(inner);
    a.backward(model(at::ones({4, 100}, a.device())).sum());
    optimizer.step();
    if (a.rank() == 1) at::empty({1000, 1000, 1000}, a.device());
    a.wait_for_everyone();
  };
  fake::set_largest_tensor(1'000'000'000);
  const std::string error = machine.error_of(machine.config({0, 3}), train_until_full);
  CHECK_THAT(error, ContainsSubstring("rank 1: CUDA out of memory. Tried to allocate 4000000000 bytes.") &&
                        ContainsSubstring("rank 1 holds parameters of 0.0 MB, gradients of 0.0 MB, optimizer state of "
                                          "0.1 MB; its largest parameters: weight 0.0 MB, bias 0.0 MB"));
  // What was said of memory is not said of another failure.
  const std::string other = machine.error_of(machine.config({0, 3}), [&](Accelerator& a) {
    try {
      train_until_full(a);
    } catch (const c10::OutOfMemoryError&) {
    }
    throw std::runtime_error("disk on fire");
  });
  CHECK_THAT(other, ContainsSubstring("disk on fire") && !ContainsSubstring("holds"));
  std::int64_t size = 0;
  launch(machine.config({0, 3}), [&](Accelerator& a) {
    const auto mine = a.find_executable_batch_size(
        64, [&](std::int64_t batch) { at::empty({batch * (a.is_main() ? 10'000'000 : 1)}, a.device()); });
    if (a.is_main()) size = mine;
  });
  CHECK(size == 16);
  fake::set_largest_tensor(std::size_t{1} << 40);
  machine.check_clean();
}

TEST_CASE("NaN in a GPU rank's gradients is found without waiting, and at the latest when the body ends") {
  fake::reset();
  const Machine machine;
  const int bad = GENERATE(1, 3, 6);  // of 6 passes
  LaunchConfig config = machine.config({0, 1});
  config.gradient_reducer.check_finite = true;
  const auto train_with = [bad](bool nan) {
    return [bad, nan](Accelerator& a) {
      torch::nn::Linear net(4, 4);
      auto model = a.prepare(net);
      for (int pass = 1; pass <= 6; ++pass)
        a.backward(model(at::ones({2, 4}, a.device())).sum() *
                   (nan && pass == bad && a.is_last() ? std::numeric_limits<double>::infinity() : 1.0));
    };
  };
  CHECK(machine.error_of(config, train_with(false)) == "");
  CHECK_THAT(
      machine.error_of(config, train_with(true)),
      ContainsSubstring("a gradient of reduction " + std::to_string(bad) + " (counted from 1) is infinite or NaN") &&
          ContainsSubstring("that of weight still is"));
  machine.check_clean();
}

TEST_CASE("TF32 is allowed for a launch, and is as it was afterwards") {
  const Machine machine;
  auto& context = at::globalContext();
  const bool products = context.allowTF32CuBLAS(), convolutions = context.allowTF32CuDNN();
  for (const bool allowed : {true, false}) {
    LaunchConfig config = machine.config({0});
    config.tf32 = allowed;
    bool as_asked = false;
    launch(config, [&](Accelerator&) {
      as_asked = context.allowTF32CuBLAS() == allowed && context.allowTF32CuDNN() == allowed;
    });
    CHECK(as_asked);
    CHECK(context.allowTF32CuBLAS() == products);
    CHECK(context.allowTF32CuDNN() == convolutions);
  }
}

TEST_CASE("training on GPU ranks of several nodes gives what it gives in one process") {
  const auto [first, second, third] =
      GENERATE(table<std::vector<int>, std::vector<int>, std::vector<int>>({{{0, 1}, {2}, {}}, {{4}, {1, 0}, {3}}}));
  const Setup setup = GENERATE(values<Setup>(
      {{.adamw = true}, {.adamw = false, .accumulation = 2, .clip = true}, {.precision = Precision::bf16}}));
  fake::reset();
  const Machine machine;
  std::vector<LaunchConfig> of_nodes;
  std::vector<int> all;
  for (const auto& devices : {first, second, third}) {
    if (devices.empty()) continue;
    of_nodes.push_back(machine.config(devices));
    all.insert(all.end(), devices.begin(), devices.end());
  }
  CHECK(train_on_nodes(of_nodes, setup) == train(machine.config(all, Transport::nccl), setup));
  machine.check_clean();
}

TEST_CASE("a failure of a GPU rank on another node ends all nodes, and NCCL's communicators") {
  fake::reset();
  const Machine machine;
  const auto errors = try_to_launch_nodes({machine.config({0, 1}), machine.config({2})}, [](Accelerator& a) {
    if (a.is_last()) throw std::runtime_error("disk on fire");
    a.reduce(at::ones({100}, a.device()));
  });
  for (const auto& error : errors)
    CHECK_THAT(text_of_error(error), ContainsSubstring("rank 2") && ContainsSubstring("disk on fire"));
  machine.module->fake_nccl->fail("init_rank", 2, static_cast<comm::nccl::Result>(2));
  for (const auto& error : try_to_launch_nodes({machine.config({0, 1}), machine.config({2})}, [](Accelerator&) {}))
    CHECK_THAT(text_of_error(error), ContainsSubstring("rank 2 (GPU 2, fake): ncclCommInitRankConfig failed"));
  CHECK(machine.module->fake_nccl->alive() == 0);
}

TEST_CASE("GPUs of several nodes want NCCL, and a GPU a rank") {
  const Machine machine;
  const auto error_of_nodes = [](const std::vector<LaunchConfig>& of_nodes) {
    return text_of_error(try_to_launch_nodes(of_nodes, [](Accelerator&) {})[0]);
  };
  const LaunchConfig by_peers = machine.config({0}, Transport::peer_memory);
  LaunchConfig other = by_peers;
  other.devices = {1};
  CHECK_THAT(error_of_nodes({by_peers, other}), ContainsSubstring("through NCCL, with a GPU a rank"));
  CHECK_THAT(error_of_nodes({machine.config({0, 0}), machine.config({1})}), ContainsSubstring("with a GPU a rank"));
  CHECK_THAT(error_of_nodes({machine.config({0}), machine.config({0})}),
             ContainsSubstring("would share GPU none of 0"));
  LaunchConfig divided = machine.config({0});
  divided.sharding = Sharding::optimizer;
  CHECK_THAT(error_of_nodes({divided, divided}), ContainsSubstring("sharding = optimizer on GPUs of several machines"));
}
