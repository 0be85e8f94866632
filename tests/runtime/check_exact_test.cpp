// check_exact: finds what differs between two numbers of ranks, and who made it.
#include <atomic>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "runtime/exact_networks.h"
#include "runtime/operator_trace.h"
#include "support/bf16_lstm.h"
#include "support/error_of.h"
#include "tandem/runtime/check_exact.h"

using namespace tandem;
using namespace tandem::test;
using Catch::Matchers::StartsWith;

namespace {

// Adds up each row, beginning where the calls before have left off, as atomic additions come in any order.
at::Tensor sum_in_any_order(const at::Tensor& rows) {
  static std::atomic<std::int64_t> calls = 0;
  const std::int64_t width = rows.size(1);
  const std::int64_t first = calls.fetch_add(1) % width;
  at::Tensor sum = at::zeros({rows.size(0), 1}, rows.options());
  for (std::int64_t i = 0; i < width; ++i) sum += rows.slice(1, (first + i) % width, (first + i) % width + 1);
  return sum;
}

// Writes to memory itself, unseen by LibTorch, a result that depends on the number of ranks.
struct LooksAtRanks : torch::autograd::Function<LooksAtRanks> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x, int ranks) {
    at::Tensor result = x.clone();
    float* values = result.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < result.numel(); ++i) values[i] *= 1 + 0.001f * static_cast<float>(ranks);
    return result;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0], {}};
  }
};

TORCH_LIBRARY(planted, library) { library.def("sum_in_any_order(Tensor rows) -> Tensor"); }
TORCH_LIBRARY_IMPL(planted, CompositeImplicitAutograd, library) { library.impl("sum_in_any_order", sum_in_any_order); }

enum class Plant { sum, kernel, multiplication, weights_of_a_rank, draws, batches, gradient };

struct PlantedNetImpl : torch::nn::Module {
  torch::nn::Linear first, second;
  Plant plant;
  int ranks;
  PlantedNetImpl(Plant plant, int ranks) : first(4, 61), second(61, 2), plant(plant), ranks(ranks) {
    register_module("first", first);
    register_module("second", second);
  }
  at::Tensor forward(const at::Tensor& x) {
    at::Tensor hidden = first(x).tanh();
    if (plant == Plant::kernel) hidden = LooksAtRanks::apply(hidden, ranks).relu();
    if (plant == Plant::multiplication) hidden = hidden * (1 + 0.001 * ranks);
    if (plant == Plant::draws && ranks > 1) hidden = hidden + 0 * at::rand({1});
    if (plant == Plant::gradient)
      hidden.register_hook([this](const at::Tensor& gradient) { return gradient * (1 + 0.001 * ranks); });
    if (plant != Plant::sum) return second(hidden);
    static const auto sum = c10::Dispatcher::singleton()
                                .findSchemaOrThrow("planted::sum_in_any_order", "")
                                .typed<at::Tensor(const at::Tensor&)>();
    return second(hidden * sum.call(hidden));
  }
};
TORCH_MODULE(PlantedNet);

struct Numbers : torch::data::datasets::Dataset<Numbers> {
  float shift;
  explicit Numbers(float shift) : shift(shift) {}
  torch::data::Example<> get(std::size_t index) override {
    const at::Tensor values = at::arange(4, at::kFloat) * 0.37f + 0.1f * static_cast<float>(index);
    return {values.sin() + shift, values.cos().slice(0, 0, 2)};
  }
  std::optional<std::size_t> size() const override { return 160; }
};

void train_planted(Accelerator& accelerator, Plant plant) {
  const int ranks = accelerator.world_size();
  PlantedNet net(plant, ranks);
  torch::optim::SGD inner(net->parameters(), 0.1);
  auto model = accelerator.prepare(net);
  auto optimizer = accelerator.prepare(inner);
  const float shift = plant == Plant::batches ? static_cast<float>(ranks) : 0;
  auto loader =
      accelerator.prepare(data::DataLoader(Numbers(shift).map(torch::data::transforms::Stack<>()), {.batch_size = 2}));
  for (auto& batch : loader) {
    auto micro_batch = accelerator.accumulate(model);
    accelerator.backward(torch::nn::functional::mse_loss(model(batch.data), batch.target));
    optimizer.step();
    optimizer.zero_grad();
    if (plant == Plant::weights_of_a_rank && accelerator.rank() == 1 && accelerator.sync_gradients()) {
      const torch::NoGradGuard no_grad;
      net->second->bias.add_(1);
    }
  }
}

ExactDifference difference_with(Plant plant, int ranks) {
  const ExactCheck check =
      check_exact({.cpu = ranks}, [&](Accelerator& accelerator) { train_planted(accelerator, plant); });
  REQUIRE(check.difference.has_value());
  CHECK(check.difference->window == 1);
  CHECK(check.windows == 1);
  CHECK_THAT(check.text(), ContainsSubstring("part in window 1") && ContainsSubstring(check.difference->state) &&
                               ContainsSubstring(check.difference->source));
  return *check.difference;
}

}  // namespace

TEST_CASE("check_exact finds nothing where all is the same, whatever the layers are made of") {
  const auto layers = GENERATE(Layers::linear, Layers::batch_norm, Layers::convolution, Layers::recurrent,
                               Layers::attention, Layers::sparse, Layers::memory, Layers::renormed);
  const int ranks = GENERATE(1, 4);
  CAPTURE(static_cast<int>(layers), ranks);
  const ExactRun run{.layers = layers,
                     .stepper = layers == Layers::sparse ? Stepper::adagrad : Stepper::adamw,
                     .accumulation = 2,
                     .clip = true};
  const ExactCheck check = check_exact(
      run.config(ranks), [&](Accelerator& accelerator) { ExactTrainer(accelerator, run).train(); }, 2);
  CHECK_FALSE(check.difference.has_value());
  CHECK(check.windows == 2);
  CHECK(check.ranks == ranks);
  CHECK(check.other_ranks == (ranks == 1 ? 2 : 1));
  CHECK_THAT(check.text(), ContainsSubstring("to the bit"));
}

TEST_CASE("check_exact compares as many windows as a body makes, also where ranks end apart") {
  const auto [even, joins] = GENERATE(std::pair{true, false}, std::pair{false, false}, std::pair{false, true});
  const ExactRun run{.layers = Layers::linear, .samples = 33, .epochs = 1, .even = even, .joins = joins};
  CAPTURE(even, joins);
  const ExactCheck check = check_exact(
      run.config(4), [&](Accelerator& accelerator) { ExactTrainer(accelerator, run).train(); }, 100);
  CHECK(check.text() ==
        "4 ranks and 1 rank have made the same weights, buffers and generators in 3 windows, to the bit");
}

TEST_CASE("check_exact tells that an optimizer differs, where what it is given does not") {
  const auto layers = GENERATE(Layers::linear, Layers::batch_norm, Layers::convolution, Layers::recurrent,
                               Layers::attention, Layers::sparse, Layers::memory, Layers::renormed);
  const auto precision = GENERATE(Precision::no, Precision::bf16);
  if (precision == Precision::bf16 && layers == Layers::sparse) return;
  if (precision == Precision::bf16 && layers == Layers::recurrent && !has_bf16_lstm()) return;
  CAPTURE(static_cast<int>(layers));
  const ExactCheck check = check_exact(
      {.cpu = 2, .mixed_precision = precision, .gradient_accumulation_steps = 2}, [&](Accelerator& accelerator) {
        Reader net(layers);
        torch::optim::SGD inner(net->parameters(), 0.1 + 0.01 * accelerator.world_size());
        auto model = accelerator.prepare(net);
        auto optimizer = accelerator.prepare(inner);
        auto loader = accelerator.prepare(
            data::DataLoader(Sentences(64).map(torch::data::transforms::Stack<>()), {.batch_size = 2}));
        for (auto& batch : loader) {
          auto micro_batch = accelerator.accumulate(model);
          accelerator.backward(torch::nn::functional::cross_entropy(model(batch.data), batch.target));
          optimizer.step();
          optimizer.zero_grad();
        }
      });
  REQUIRE(check.difference.has_value());
  CHECK_THAT(check.difference->state, StartsWith("weight "));
  CHECK_THAT(check.difference->source, StartsWith("all that forward and backward passes called gave the same"));
}

TEST_CASE("check_exact names what makes other values on other ranks") {
  const int ranks = GENERATE(1, 2, 8);
  CAPTURE(ranks);
  SECTION("a sum in any order") {
    const auto difference = difference_with(Plant::sum, ranks);
    CHECK_THAT(difference.state, StartsWith("weight "));
    CHECK_THAT(difference.source,
               ContainsSubstring("planted::sum_in_any_order after layer first (torch::nn::LinearImpl)"));
  }
  SECTION("a kernel of its own that looks at the number of ranks") {
    const auto difference = difference_with(Plant::kernel, ranks);
    CHECK_THAT(difference.source, StartsWith("argument 1 of aten::relu after layer first (torch::nn::LinearImpl)") &&
                                      ContainsSubstring("LooksAtRanks") && ContainsSubstring("in logical shard 0"));
  }
  SECTION("a number that depends on it") {
    const auto difference = difference_with(Plant::multiplication, ranks);
    CHECK_THAT(difference.source, StartsWith("argument 2 of aten::mul after layer first (torch::nn::LinearImpl)"));
  }
  SECTION("the data") {
    const auto difference = difference_with(Plant::batches, ranks);
    CHECK_THAT(difference.source, StartsWith("argument ") &&
                                      ContainsSubstring("of layer first (torch::nn::LinearImpl)") &&
                                      ContainsSubstring("they come from the data"));
  }
  SECTION("a draw that only some make") {
    const auto difference = difference_with(Plant::draws, ranks);
    CHECK_THAT(difference.state, StartsWith("the generator of logical shard"));
    CHECK_THAT(difference.source, ContainsSubstring("was called where the other training called"));
  }
  SECTION("the backward pass of a layer") {
    const auto difference = difference_with(Plant::gradient, ranks);
    CHECK_THAT(difference.source, ContainsSubstring("in the backward pass after layer first (torch::nn::LinearImpl)"));
  }
  SECTION("weights that only some ranks write to") {
    const auto difference = difference_with(Plant::weights_of_a_rank, ranks);
    CHECK_THAT(difference.state,
               StartsWith("weight second.bias") && ContainsSubstring("another on rank 1 than on rank 0"));
  }
}

TEST_CASE("tensors of every layout have another hash when one value is another") {
  const at::Tensor dense = at::eye(4);
  at::Tensor other = dense.clone();
  other[2][2] = 2;
  const auto layouts =
      std::vector<std::function<at::Tensor(const at::Tensor&)>>{[](const at::Tensor& t) { return t; },
                                                                [](const at::Tensor& t) { return t.t(); },
                                                                [](const at::Tensor& t) { return t.slice(0, 1, 3); },
                                                                [](const at::Tensor& t) { return t.to_sparse(); },
                                                                [](const at::Tensor& t) { return t.to_sparse_csr(); },
                                                                [](const at::Tensor& t) { return t.to_sparse_csc(); },
                                                                [](const at::Tensor& t) {
                                                                  return t.to_sparse_bsr({2, 2});
                                                                },
                                                                [](const at::Tensor& t) {
                                                                  return t.to_sparse_bsc({2, 2});
                                                                }};
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    CAPTURE(i);
    CHECK(hash_of_tensor(layouts[i](dense)) == hash_of_tensor(layouts[i](dense.clone())));
    CHECK(hash_of_tensor(layouts[i](dense)) != hash_of_tensor(layouts[i](other)));
  }
}

TEST_CASE("check_exact refuses what compares nothing, and passes on what a body throws") {
  const auto nothing = [](Accelerator&) {};
  CHECK_THAT(error_of<ConfigError>([&] { check_exact({.cpu = 2}, nothing, 0); }), ContainsSubstring("use 1 or more"));
  CHECK_THAT(
      error_of<ConfigError>([&] { check_exact({.cpu = 1, .exact = ExactOptions{.logical_ranks = 1}}, nothing); }),
      ContainsSubstring("one logical rank"));
  CHECK_THAT(error_of<RankError>([&] {
               check_exact({.cpu = 2}, [](Accelerator& accelerator) {
                 if (accelerator.is_main()) throw std::runtime_error("no such file");
               });
             }),
             ContainsSubstring("no such file"));
  CHECK_THAT(check_exact({.cpu = 2}, nothing).text(), ContainsSubstring("closed no window"));
}
