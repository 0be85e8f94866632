// Autocast in forward passes.
#include <barrier>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <ATen/autocast_mode.h>
#include <torch/nn/modules/adaptive.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Mixed {
  at::Tensor half, index;
  std::string name;
};
[[maybe_unused]] auto batch_fields(Mixed& mixed) { return std::tie(mixed.half, mixed.index); }

// Says that it has no tensors.
struct Count {
  int calls;
};
[[maybe_unused]] auto batch_fields(Count&) { return std::tuple<>(); }

template <class T>
constexpr bool is_known = !data::detail::part_kinds<T>().unknown;
struct Unknown {
  at::Tensor half;
};
// What forward may return: the compiler knows of all their tensors. tests/misuse has what it says of the others.
static_assert(is_known<Mixed> && is_known<Count> && is_known<std::string> && is_known<double> &&
              is_known<std::tuple<at::Tensor, std::tuple<at::Tensor, at::Tensor>>> && is_known<torch::nn::ASMoutput>);
static_assert(!is_known<Unknown> && !is_known<std::vector<Unknown>> && !is_known<std::pair<at::Tensor, Unknown>> &&
              !is_known<std::shared_ptr<Mixed>> && !is_known<c10::IValue> && !is_known<at::Tensor*>);

struct AutocastState {
  bool enabled = at::autocast::is_autocast_enabled(at::kCPU);
  at::ScalarType type = at::autocast::get_autocast_dtype(at::kCPU);
  bool cache = at::autocast::is_autocast_cache_enabled();
  bool operator==(const AutocastState&) const = default;
};

// A linear layer that lets the test look on, between two uses of its weight.
struct ProbeImpl : torch::nn::Module {
  ProbeImpl() : fc(register_module("fc", torch::nn::Linear(torch::nn::LinearOptions(4, 2).bias(false)))) {}
  at::Tensor forward(const at::Tensor& x) {
    seen = fc(x).scalar_type();
    if (inside) inside();
    return fc(x);
  }
  torch::nn::Linear fc;
  at::ScalarType seen{};
  std::function<void()> inside;
};
TORCH_MODULE(Probe);

at::ScalarType type_of(Precision precision) { return precision == Precision::fp16 ? at::kHalf : at::kBFloat16; }

}  // namespace

TEST_CASE("a prepared model's forward autocasts on its own rank's thread only, and gives float32") {
  const auto precision = GENERATE(Precision::bf16, Precision::fp16);
  std::barrier meeting(2);
  struct Seen {
    at::ScalarType inside{}, elsewhere{}, output{}, weight{}, gradient{};
  };
  const auto seen = on_ranks<Seen>(2, {.mixed_precision = precision}, [&](Accelerator& accelerator) {
    Probe probe;
    auto model = accelerator.prepare(probe);
    const auto x = torch::ones({3, 4});
    Seen mine;
    // Rank 1 computes while rank 0 is within its forward, and the other way round.
    for (int turn = 0; turn < 2; ++turn) {
      if (accelerator.rank() == turn) {
        probe->inside = [&] {
          meeting.arrive_and_wait();
          meeting.arrive_and_wait();
        };
        const auto y = model(x);
        probe->inside = {};
        mine.inside = probe->seen;
        mine.output = y.scalar_type();
      } else {
        meeting.arrive_and_wait();
        mine.elsewhere = model->forward(x).scalar_type();
        meeting.arrive_and_wait();
      }
    }
    accelerator.backward(model(x).sum());
    mine.weight = probe->fc->weight.scalar_type();
    mine.gradient = probe->fc->weight.grad().scalar_type();
    return mine;
  });
  for (const auto& mine : seen) {
    CHECK(mine.inside == type_of(precision));
    CHECK(mine.elsewhere == at::kFloat);
    CHECK(mine.output == at::kFloat);
    CHECK(mine.weight == at::kFloat);
    CHECK(mine.gradient == at::kFloat);
  }
}

namespace {

using Everything = std::tuple<at::Tensor, std::vector<at::Tensor>, std::map<std::string, std::optional<at::Tensor>>,
                              Mixed, Count, std::string>;

struct ManyImpl : torch::nn::Module {
  Everything forward(const at::Tensor& x) {
    const at::Tensor half = torch::mm(x, x);
    return {half,
            {half, half.to(at::kDouble)},
            {{"a", half}, {"none", std::nullopt}},
            {half, at::zeros({2}, at::kLong), "name"},
            {3},
            "text"};
  }
  void forward(int& calls) { calls += at::autocast::is_autocast_enabled(at::kCPU) ? 1 : 100; }
};

}  // namespace

TEST_CASE("half-precision tensors anywhere in a model's output become float32, and nothing else changes") {
  run_ranks(1, {.mixed_precision = Precision::bf16}, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<ManyImpl>());
    const auto [tensor, list, map, mixed, count, text] = model(torch::ones({2, 2}));
    CHECK(tensor.scalar_type() == at::kFloat);
    CHECK(list[0].scalar_type() == at::kFloat);
    CHECK(list[1].scalar_type() == at::kDouble);
    CHECK(map.at("a")->scalar_type() == at::kFloat);
    CHECK(!map.at("none"));
    CHECK(mixed.half.scalar_type() == at::kFloat);
    CHECK(mixed.index.scalar_type() == at::kLong);
    CHECK(mixed.name == "name");
    CHECK(count.calls == 3);
    CHECK(text == "text");
    int calls = 0;
    model(calls);
    CHECK(calls == 1);
  });
}

TEST_CASE("what LibTorch's adaptive softmax gives is float32 and can be reduced") {
  run_ranks(2, {.mixed_precision = Precision::bf16}, [](Accelerator& accelerator) {
    const auto options = torch::nn::AdaptiveLogSoftmaxWithLossOptions(4, 10, {5});
    auto model = accelerator.prepare(torch::nn::AdaptiveLogSoftmaxWithLoss(options));
    const auto result = model(torch::ones({2, 4}), torch::zeros({2}, at::kLong));
    if (result.output.scalar_type() != at::kFloat) throw std::runtime_error("not float32");
    const torch::NoGradGuard no_grad;
    const auto sum = accelerator.reduce(result);  // equal on both ranks, whose weights are
    if (std::abs(sum.loss - 2 * result.loss) > 1e-12) throw std::runtime_error("another sum");
  });
}

TEST_CASE("autocast scopes reach code outside of a forward, nest, and end with what was before") {
  const auto precision = GENERATE(Precision::bf16, Precision::fp16);
  run_ranks(1, {.mixed_precision = precision}, [&](Accelerator& accelerator) {
    const auto x = torch::ones({2, 2});
    const auto type_here = [&] { return torch::mm(x, x).scalar_type(); };
    const AutocastState before;
    {
      const auto outer = accelerator.autocast();
      CHECK(type_here() == type_of(precision));
      {
        const nn::AutocastScope inner(at::kCPU, Precision::bf16);
        CHECK(type_here() == at::kBFloat16);
        const nn::AutocastScope nothing(at::kCPU, Precision::no);
        CHECK(type_here() == at::kBFloat16);
      }
      CHECK(type_here() == type_of(precision));
    }
    CHECK(AutocastState() == before);
    CHECK(type_here() == at::kFloat);
    // A GPU rank's scope leaves CPU operators alone.
    const nn::AutocastScope gpu(at::kCUDA, precision);
    CHECK(at::autocast::is_autocast_enabled(at::kCUDA));
    CHECK(at::autocast::get_autocast_dtype(at::kCUDA) == type_of(precision));
    CHECK(type_here() == at::kFloat);
  });
}

TEST_CASE("without mixed precision nothing is cast, and a user's own autocast is left alone") {
  run_ranks(1, [](Accelerator& accelerator) {
    Probe probe;
    auto model = accelerator.prepare(probe);
    CHECK(accelerator.grad_scaler() == nullptr);
    {
      const auto scope = accelerator.autocast();
      CHECK(model(torch::ones({1, 4})).scalar_type() == at::kFloat);
      CHECK(probe->seen == at::kFloat);
    }
    const nn::AutocastScope own(at::kCPU, Precision::bf16);
    CHECK(model(torch::ones({1, 4})).scalar_type() == at::kBFloat16);
  });
}

TEST_CASE("an exception that leaves a forward leaves no autocast behind, and is the one that was thrown") {
  struct Seen {
    std::string error;
    at::ScalarType inside{};
    bool restored = false;
  };
  const auto all = on_ranks<Seen>(2, {.mixed_precision = Precision::fp16}, [](Accelerator& accelerator) {
    Probe probe;
    auto model = accelerator.prepare(probe);
    const AutocastState before;
    Seen seen;
    probe->inside = [] { throw std::out_of_range("no such word"); };
    try {
      model(torch::ones({1, 4}));
    } catch (const std::out_of_range& error) {
      seen.error = error.what();
    }
    seen.inside = probe->seen;
    seen.restored = AutocastState() == before;
    return seen;
  });
  for (const auto& seen : all) {
    CHECK(seen.error == "no such word");
    CHECK(seen.inside == at::kHalf);
    CHECK(seen.restored);
  }
}

TEST_CASE("an operator without a kernel for the precision is an error that says which to use instead") {
  struct QuantileImpl : torch::nn::Module {
    at::Tensor forward(const at::Tensor& x) { return torch::special_ndtri(torch::mm(x, x)); }
  };
  const auto error = run_ranks_expecting_error(1, {.mixed_precision = Precision::fp16}, [](Accelerator& accelerator) {
    accelerator.prepare(std::make_shared<QuantileImpl>())(torch::ones({2, 2}));
  });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
  CHECK_THAT(error.what(), ContainsSubstring("no float16 kernel on CPU") && ContainsSubstring("not implemented for") &&
                               ContainsSubstring("use mixed precision bf16 or no"));
}

TEST_CASE("a weight used twice gets the same gradient when another thread's autocast ends in between") {
  // 1 + 2^-9 does not fit bfloat16: the parts must be added in float32, as they are when LibTorch's cache of casts,
  // which is one for the process, is emptied in between.
  struct TwiceImpl : torch::nn::Module {
    TwiceImpl() : weight(register_parameter("weight", torch::ones({1, 1}))) {}
    at::Tensor forward(bool interrupt) {
      const auto first = at::linear(torch::ones({1, 1}), weight);
      if (interrupt) std::thread([] { at::autocast::clear_cache(); }).join();
      return first + at::linear(torch::full({1, 1}, 1.0F / 512), weight);
    }
    at::Tensor weight;
  };
  const bool interrupt = GENERATE(false, true);
  const auto gradients = on_ranks<float>(2, {.mixed_precision = Precision::bf16}, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<TwiceImpl>());
    accelerator.backward(model(interrupt).sum());
    return model->weight.grad().item<float>();
  });
  CHECK(gradients == std::vector<float>{1 + 1.0F / 512, 1 + 1.0F / 512});
}

TEST_CASE("what is drawn under autocast comes from the rank's generator, as without") {
  const auto dropped = [](Precision precision) {
    return on_ranks<at::Tensor>(2, {.mixed_precision = precision}, [](Accelerator& accelerator) {
      torch::nn::Sequential net(torch::nn::Linear(4, 64), torch::nn::Dropout(0.5));
      auto model = accelerator.prepare(net);
      rng::manual_seed(7 + static_cast<std::uint64_t>(accelerator.rank()));
      return model(torch::ones({1, 4})).eq(0);
    });
  };
  const auto plain = dropped(Precision::no), mixed = dropped(Precision::bf16);
  CHECK(at::equal(plain[0], mixed[0]));
  CHECK(at::equal(plain[1], mixed[1]));
  CHECK(!at::equal(mixed[0], mixed[1]));
}
