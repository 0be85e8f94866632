// Training on ranks against a plain single-threaded LibTorch loop over the same global batches.
#include <limits>

#include <torch/data/dataloader.h>
#include <torch/data/samplers/sequential.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

namespace F = torch::nn::functional;

constexpr std::int64_t kGlobalBatch = 16, kSamples = 16 * 12, kEpochs = 2;

torch::nn::Sequential make_net() {
  return torch::nn::Sequential(torch::nn::Linear(6, 16), torch::nn::Tanh(), torch::nn::Linear(16, 3));
}

struct Data {
  at::Tensor inputs, targets;
};

Data make_data() {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  return {at::randn({kSamples, 6}, generator), at::randint(0, 3, {kSamples}, generator, at::kLong)};
}

struct PairDataset : torch::data::datasets::BatchDataset<PairDataset, torch::data::Example<>> {
  Data data;
  explicit PairDataset(Data data) : data(std::move(data)) {}
  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
    std::vector<std::int64_t> list(indices.begin(), indices.end());
    const at::Tensor index = at::tensor(list, at::kLong);
    return {data.inputs.index_select(0, index), data.targets.index_select(0, index)};
  }
  std::optional<std::size_t> size() const override { return data.inputs.size(0); }
};

struct Setup {
  bool adamw;
  int accumulation;
  double clip;  // 0: none
  bool fused = true;
  double norm_type = 2.0;
  bool clips_values = false;
};

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Setup& setup, const torch::nn::Sequential& net) {
  if (setup.adamw) return std::make_unique<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(0.01));
  return std::make_unique<torch::optim::SGD>(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
}

struct Trained {
  std::vector<double> losses;  // of each micro-batch, over all ranks
  std::vector<at::Tensor> weights;
};

std::vector<at::Tensor> copies(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  for (const auto& tensor : tensors) result.push_back(tensor.detach().clone());
  return result;
}

// The reference: nothing of Tandem in it.
Trained train_plainly(const Setup& setup) {
  torch::manual_seed(42);
  auto net = make_net();
  auto optimizer = make_optimizer(setup, net);
  const Data data = make_data();
  Trained trained;
  int in_window = 0;
  for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch)
    for (std::int64_t at = 0; at < kSamples; at += kGlobalBatch) {
      auto loss = F::cross_entropy(net->forward(data.inputs.slice(0, at, at + kGlobalBatch)),
                                   data.targets.slice(0, at, at + kGlobalBatch));
      trained.losses.push_back(loss.item<double>());
      (loss / setup.accumulation).backward();
      if (++in_window < setup.accumulation) continue;
      in_window = 0;
      if (setup.clip > 0 && !setup.clips_values)
        torch::nn::utils::clip_grad_norm_(net->parameters(), setup.clip, setup.norm_type);
      if (setup.clip > 0 && setup.clips_values) torch::nn::utils::clip_grad_value_(net->parameters(), setup.clip);
      optimizer->step();
      optimizer->zero_grad();
    }
  trained.weights = copies(net->parameters());
  return trained;
}

Trained train_on_ranks(const Setup& setup, int ranks, bool dispatch) {
  LaunchConfig config{.seed = 42, .gradient_accumulation_steps = setup.accumulation, .fused_optimizers = setup.fused};
  config.data_loader.dispatch_batches = dispatch;
  const Data data = make_data();
  auto results = on_ranks<Trained>(ranks, config, [&](Accelerator& accelerator) {
    auto net = make_net();
    auto inner = make_optimizer(setup, net);
    auto [model, optimizer, loader] = accelerator.prepare(
        net, *inner, data::DataLoader(PairDataset(data), {.batch_size = kGlobalBatch / accelerator.world_size()}));
    Trained trained;
    for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch)
      for (auto& [inputs, targets] : loader) {
        auto window = accelerator.accumulate(model);
        auto loss = F::cross_entropy(model(inputs), targets);
        trained.losses.push_back(accelerator.reduce(loss.detach(), comm::ReduceOp::mean).template item<double>());
        accelerator.backward(loss);
        if (setup.clip > 0 && !setup.clips_values) accelerator.clip_grad_norm_(model, setup.clip, setup.norm_type);
        if (setup.clip > 0 && setup.clips_values) accelerator.clip_grad_value_(model, setup.clip);
        optimizer.step();
        optimizer.zero_grad();
      }
    trained.weights = copies(net->parameters());
    return trained;
  });
  for (const Trained& other : results)
    for (std::size_t i = 0; i < other.weights.size(); ++i)
      if (!at::equal(other.weights[i], results[0].weights[i]))
        throw std::runtime_error("ranks differ in their weights");
  return results[0];
}

}  // namespace

TEST_CASE("training on 1, 2 and 4 ranks is the plain loop") {
  const Setup setup{.adamw = GENERATE(false, true), .accumulation = GENERATE(1, 4), .clip = GENERATE(0.0, 0.3)};
  const int ranks = GENERATE(1, 2, 4);
  const bool dispatch = GENERATE(false, true);
  CAPTURE(setup.adamw, setup.accumulation, setup.clip, ranks, dispatch);
  const Trained expected = train_plainly(setup);
  const Trained trained = train_on_ranks(setup, ranks, dispatch);
  REQUIRE(trained.losses.size() == expected.losses.size());
  for (std::size_t i = 0; i < expected.losses.size(); ++i)
    CHECK(std::abs(trained.losses[i] - expected.losses[i]) <= 1e-5 * std::abs(expected.losses[i]));
  for (std::size_t i = 0; i < expected.weights.size(); ++i)
    CHECK(at::allclose(trained.weights[i], expected.weights[i], 1e-4, 1e-5));
}

TEST_CASE("one rank gives the plain loop's weights to the bit when the optimizer's own step is used") {
  const double inf = std::numeric_limits<double>::infinity();
  const auto [clip, norm_type] = GENERATE_REF(table<double, double>({{0.0, 2.0},
                                                                     {0.3, 2.0},
                                                                     {0.02, 2.0},
                                                                     {0.3, 1.0},
                                                                     {0.3, 3.0},
                                                                     {0.3, 0.5},
                                                                     {0.02, inf},
                                                                     {0.3, 0.0},
                                                                     {1e-4, -inf},
                                                                     {1e-4, -1.0}}));
  const Setup setup{.adamw = GENERATE(true, false),
                    .accumulation = GENERATE(1, 4),
                    .clip = clip,
                    .fused = false,
                    .norm_type = norm_type,
                    .clips_values = GENERATE(false, true)};
  CAPTURE(setup.adamw, setup.accumulation, setup.clip, setup.norm_type, setup.clips_values);
  const Trained expected = train_plainly(setup);
  const Trained trained = train_on_ranks(setup, 1, false);
  for (std::size_t i = 0; i < expected.weights.size(); ++i) CHECK(at::equal(trained.weights[i], expected.weights[i]));
}

TEST_CASE("the same launch gives the same bits again") {
  const Setup setup{.adamw = true, .accumulation = 4, .clip = 0.3};
  const Trained first = train_on_ranks(setup, 4, false);
  const Trained second = train_on_ranks(setup, 4, false);
  CHECK(first.losses == second.losses);
  for (std::size_t i = 0; i < first.weights.size(); ++i) CHECK(at::equal(first.weights[i], second.weights[i]));
}

TEST_CASE("the two programs of docs/migration.md, in small, read the same batches and end with the same weights") {
  const int ranks = GENERATE(1, 2);
  Data data = make_data();
  data = {data.inputs.slice(0, 0, kSamples - 5), data.targets.slice(0, 0, kSamples - 5)};  // a last, shorter batch

  torch::manual_seed(42);
  auto plain_batches = torch::data::make_data_loader<torch::data::samplers::SequentialSampler>(
      PairDataset(data), torch::data::DataLoaderOptions().batch_size(kGlobalBatch).workers(2).drop_last(true));
  auto plain = make_net();
  torch::optim::AdamW plain_adamw(plain->parameters(), 2e-3);
  for (int epoch = 0; epoch < 2; ++epoch)
    for (auto& batch : *plain_batches) {
      plain_adamw.zero_grad();
      F::cross_entropy(plain->forward(batch.data), batch.target).backward();
      torch::nn::utils::clip_grad_norm_(plain->parameters(), 1.0);
      plain_adamw.step();
    }

  const auto weights =
      on_ranks<std::vector<at::Tensor>>(ranks, {.seed = 42, .fused_optimizers = false}, [&](Accelerator& accelerator) {
        auto net = make_net();
        torch::optim::AdamW adamw(net->parameters(), 2e-3);
        data::DataLoader loader(
            PairDataset(data),
            {.batch_size = kGlobalBatch / accelerator.world_size(), .drop_last = true, .workers = 2});
        auto [model, optimizer, batches] = accelerator.prepare(net, adamw, loader);
        for (int epoch = 0; epoch < 2; ++epoch)
          for (auto& batch : batches) {
            auto window = accelerator.accumulate(model);
            accelerator.backward(F::cross_entropy(model(batch.data), batch.target));
            accelerator.clip_grad_norm_(model, 1.0);
            optimizer.step();
            optimizer.zero_grad();
          }
        return copies(net->parameters());
      });
  const auto expected = plain->parameters();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (ranks == 1) CHECK(weights[0][i].equal(expected[i]));
    CHECK(at::allclose(weights[0][i], expected[i], 1e-4, 1e-5));
  }
}
