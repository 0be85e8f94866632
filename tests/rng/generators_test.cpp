#include "tandem/rng/generators.h"

#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include <torch/data/samplers/random.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// What user code draws, without naming a generator anywhere.
std::vector<at::Tensor> draw_everything() {
  std::vector<at::Tensor> drawn{torch::rand({7}), torch::randn({3, 2}), torch::randint(0, 99, {5}), torch::randperm(9)};
  drawn.push_back(torch::bernoulli(torch::full({8}, 0.5)));
  drawn.push_back(torch::multinomial(torch::ones({6}), 3));
  drawn.push_back(at::normal(torch::zeros({3}), torch::ones({3})));
  drawn.push_back(torch::poisson(torch::full({4}, 2.0)));
  drawn.push_back(torch::dropout(torch::ones({10}), 0.5, true));
  drawn.push_back(torch::rrelu(-torch::ones({4}), 0.1, 0.3, true));
  torch::nn::Linear linear(3, 3);
  drawn.push_back(linear->weight.detach().clone());
  torch::nn::init::orthogonal_(linear->weight);
  drawn.push_back(linear->weight.detach().clone());
  torch::nn::Dropout dropout(0.3);
  auto input = torch::ones({12}, torch::requires_grad());
  auto output = dropout(input);
  output.sum().backward();
  drawn.push_back(output.detach());
  drawn.push_back(input.grad());
  torch::nn::LSTM lstm(torch::nn::LSTMOptions(2, 3).num_layers(2).dropout(0.5));
  drawn.push_back(std::get<0>(lstm(torch::ones({4, 1, 2}))).detach());
  torch::data::samplers::RandomSampler sampler(6);
  const auto indices = sampler.next(6).value();
  for (auto index : indices) drawn.push_back(at::scalar_tensor(static_cast<double>(index)));
  {
    const torch::InferenceMode inference;
    drawn.push_back(torch::rand({3}));
  }
  return drawn;
}

bool same(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!at::equal(a[i], b[i])) return false;
  return true;
}

at::Tensor default_state() { return at::detail::getDefaultCPUGenerator().get_state(); }

}  // namespace

TEST_CASE("rank 0 draws what plain LibTorch draws after torch::manual_seed, in unchanged code") {
  torch::manual_seed(123);
  const auto expected = draw_everything();
  const auto drawn =
      on_ranks<std::vector<at::Tensor>>(1, {.seed = 123}, [](Accelerator&) { return draw_everything(); });
  CHECK(same(drawn[0], expected));
}

TEST_CASE("drawing on ranks leaves the process's default generator as it is") {
  torch::manual_seed(5);
  const auto before = default_state();
  run_ranks(3, [](Accelerator&) { draw_everything(); });
  CHECK(at::equal(default_state(), before));
}

TEST_CASE("ranks draw different numbers, and the same ones in every launch and schedule") {
  const auto body = [](Accelerator& accelerator) {
    std::vector<at::Tensor> drawn;
    for (int i = 0; i < 20; ++i) {
      if ((i + accelerator.rank()) % 3 == 0) std::this_thread::yield();
      auto part = draw_everything();
      drawn.insert(drawn.end(), part.begin(), part.end());
    }
    return drawn;
  };
  const auto first = on_ranks<std::vector<at::Tensor>>(8, body);
  const auto second = on_ranks<std::vector<at::Tensor>>(8, body);
  for (int rank = 0; rank < 8; ++rank) {
    CHECK(same(first[static_cast<std::size_t>(rank)], second[static_cast<std::size_t>(rank)]));
    if (rank > 0) CHECK_FALSE(at::equal(first[static_cast<std::size_t>(rank)][0], first[0][0]));
  }
  const auto alone = on_ranks<std::vector<at::Tensor>>(1, body);
  CHECK(same(alone[0], first[0]));
}

TEST_CASE("a thread without a guard is not touched, also while another has one") {
  torch::manual_seed(9);
  const auto expected = torch::rand({5});
  auto generators = rng::make_generators(1, 0);
  const rng::DefaultGeneratorGuard guard(generators);
  torch::rand({5});
  at::Tensor elsewhere;
  std::thread([&] {
    torch::manual_seed(9);
    elsewhere = torch::rand({5});
  }).join();
  CHECK(at::equal(elsewhere, expected));
}

TEST_CASE("guards nest and end with their scope, also when an exception passes") {
  auto outer = rng::make_generators(1, 0), inner = rng::make_generators(2, 0);
  CHECK(rng::current_generators() == nullptr);
  try {
    const rng::DefaultGeneratorGuard first(outer);
    CHECK(rng::current_generators() == &outer);
    const rng::DefaultGeneratorGuard second(inner);
    CHECK(rng::current_generators() == &inner);
    throw std::runtime_error("x");
  } catch (const std::runtime_error&) {
  }
  CHECK(rng::current_generators() == nullptr);
  torch::manual_seed(4);
  const auto expected = torch::rand({5});
  torch::manual_seed(4);
  CHECK(at::equal(torch::rand({5}), expected));
}

TEST_CASE("a generator that is named is used") {
  auto generators = rng::make_generators(1, 0);
  const rng::DefaultGeneratorGuard guard(generators);
  auto mine = at::make_generator<at::CPUGeneratorImpl>(77), same_seed = at::make_generator<at::CPUGeneratorImpl>(77);
  const auto state = generators.cpu.get_state();
  CHECK(at::equal(torch::rand({5}, mine), torch::rand({5}, same_seed)));
  CHECK(at::equal(generators.cpu.get_state(), state));
}

TEST_CASE("manual_seed seeds the rank's generator only") {
  const auto drawn = on_ranks<at::Tensor>(2, [](Accelerator&) {
    rng::manual_seed(8);
    return torch::rand({4});
  });
  torch::manual_seed(8);
  CHECK(at::equal(drawn[0], torch::rand({4})));
  CHECK(at::equal(drawn[1], drawn[0]));
}

TEST_CASE("torch::manual_seed in a body seeds the rank that calls it, and nobody else") {
  torch::manual_seed(5);
  const auto process = default_state();
  const auto seeded = on_ranks<std::vector<at::Tensor>>(3, [](Accelerator& accelerator) {
    const at::Tensor before = torch::rand({4});
    if (accelerator.rank() < 2) torch::manual_seed(8 + static_cast<std::uint64_t>(accelerator.rank()));
    accelerator.wait_for_everyone();
    return std::vector<at::Tensor>{before, torch::rand({4})};
  });
  CHECK(at::equal(default_state(), process));
  const auto unseeded = on_ranks<std::vector<at::Tensor>>(3, [](Accelerator&) {
    const at::Tensor before = torch::rand({4});
    return std::vector<at::Tensor>{before, torch::rand({4})};
  });
  CHECK(same(seeded[2], unseeded[2]));
  for (const std::uint64_t rank : {0, 1}) {
    torch::manual_seed(8 + rank);
    CHECK(at::equal(seeded[rank][1], torch::rand({4})));
  }
}

TEST_CASE("every way of reaching LibTorch's default generator by name means the rank's on a rank") {
  using Way = std::function<void(at::Generator)>;
  const std::vector<std::pair<std::string, Way>> ways{
      {"set_current_seed", [](at::Generator named) { named.set_current_seed(77); }},
      {"set_state",
       [](at::Generator named) { named.set_state(at::make_generator<at::CPUGeneratorImpl>(77).get_state()); }},
      {"at::manual_seed", [](const at::Generator&) { at::manual_seed(77); }},
      {"rng::manual_seed", [](const at::Generator&) { rng::manual_seed(77); }},
  };
  const at::Tensor expected = torch::rand({4}, at::make_generator<at::CPUGeneratorImpl>(77));
  for (const auto& [name, seed] : ways)
    for (const bool by_name : {false, true}) {
      CAPTURE(name, by_name);
      torch::manual_seed(5);
      const auto process = default_state();
      const auto drawn = on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
        const at::Generator& named = at::detail::getDefaultCPUGenerator();
        if (accelerator.rank() == 0) seed(named);
        at::Generator copy = named.clone();
        const at::Tensor state = named.get_state();
        const at::Tensor first = by_name ? torch::rand({4}, named) : torch::rand({4});
        const at::Tensor from_copy = torch::rand({4}, copy);
        at::Generator(named).set_state(state);
        return std::vector<at::Tensor>{first, from_copy, torch::rand({4}),
                                       at::scalar_tensor(static_cast<std::int64_t>(named.current_seed()), at::kLong)};
      });
      for (const std::size_t i : {0, 1, 2}) {
        CHECK(at::equal(drawn[0][i], expected));
        CHECK(at::equal(drawn[1][i], drawn[1][0]));
      }
      CHECK(drawn[0][3].item<std::int64_t>() == 77);
      CHECK_FALSE(at::equal(drawn[1][0], expected));
      CHECK(at::equal(default_state(), process));
    }
}

TEST_CASE("a thread that is no rank seeds the process's generator while ranks draw from theirs") {
  const auto body = [](Accelerator& accelerator) {
    std::vector<at::Tensor> drawn;
    for (int i = 0; i < 50; ++i) {
      drawn.push_back(torch::rand({4}));
      accelerator.wait_for_everyone();
    }
    return drawn;
  };
  const auto alone = on_ranks<std::vector<at::Tensor>>(2, body);
  std::atomic<bool> done{false}, equal{true};
  torch::manual_seed(9);
  const at::Tensor expected = torch::rand({5});
  std::thread other([&] {
    while (!done) {
      torch::manual_seed(9);
      if (!at::equal(torch::rand({5}), expected)) equal = false;
    }
  });
  const auto beside = on_ranks<std::vector<at::Tensor>>(2, body);
  done = true;
  other.join();
  CHECK(equal);
  CHECK(same(beside[0], alone[0]));
  CHECK(same(beside[1], alone[1]));
}

TEST_CASE("what is drawn for a key is the same whatever was seeded or drawn before") {
  const auto draw = [] {
    const rng::KeyedGenerator generator(3, 1, 4);
    return torch::rand({4});
  };
  const at::Tensor expected = draw();
  auto generators = rng::make_generators(1, 0);
  const rng::DefaultGeneratorGuard guard(generators);
  {
    rng::KeyedGenerator generator(3, 1, 4);
    torch::manual_seed(1);  // as a dataset may: of what it draws from, until the next sample
    torch::rand({4});
    generator.restart(4);
    CHECK(at::equal(torch::rand({4}), expected));
  }
  CHECK(at::equal(draw(), expected));
}

TEST_CASE("operators on meta tensors get no CPU generator") {
  auto generators = rng::make_generators(1, 0);
  const rng::DefaultGeneratorGuard guard(generators);
  const auto state = generators.cpu.get_state();
  CHECK(torch::rand({3}, at::kMeta).is_meta());
  CHECK(at::empty({3}, at::kMeta).normal_().is_meta());
  CHECK(at::equal(generators.cpu.get_state(), state));
}

TEST_CASE("the seeds of ranks differ where the generator looks, and rank 0 has the master seed") {
  for (const std::uint64_t master : {0ull, 1ull, 42ull, 43ull, 0xffffffffull, 0x123456789abcdefull}) {
    CHECK(rng::rank_seed(master, 0) == master);
    std::set<std::uint32_t> seeds;
    for (int rank = 0; rank < 1024; ++rank) seeds.insert(static_cast<std::uint32_t>(rng::rank_seed(master, rank)));
    CHECK(seeds.size() == 1024);
  }
  // Neighbouring master seeds do not share streams.
  std::set<std::uint32_t> seeds;
  for (std::uint64_t master = 0; master < 100; ++master)
    for (int rank = 0; rank < 8; ++rank) seeds.insert(static_cast<std::uint32_t>(rng::rank_seed(master, rank)));
  CHECK(seeds.size() == 800);
}
