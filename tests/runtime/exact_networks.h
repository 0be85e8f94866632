// Trainings of many kinds, of which a test compares every bit that comes out.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <torch/data/datasets/base.h>
#include <torch/data/example.h>
#include <torch/data/transforms/stack.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"

namespace tandem::test {

/// The bytes of what a training has made, in which nothing is equal that differs in a bit.
class Bits {
 public:
  void add(const at::Tensor& tensor) {
    const at::Tensor all = (tensor.is_sparse() ? tensor.to_dense() : tensor).detach().cpu().contiguous();
    bytes_.append(static_cast<const char*>(all.const_data_ptr()), all.nbytes());
  }
  void add(double value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof value); }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// While one is alive, threads that come by `may_wait` sleep there at random, and as many others as asked for keep the
/// cores busy. One at a time.
class Disturbance {
 public:
  Disturbance(unsigned seed, int busy_threads) {
    seed_of_delays() = seed;
    for (int i = 0; i < busy_threads; ++i)
      busy_.emplace_back([](const std::stop_token& stop) {
        while (!stop.stop_requested()) continue;
      });
  }
  ~Disturbance() { seed_of_delays() = 0; }
  Disturbance(const Disturbance&) = delete;
  Disturbance& operator=(const Disturbance&) = delete;

  static bool is_on() { return seed_of_delays() != 0; }

  static void may_wait() {
    if (!is_on()) return;
    static std::atomic<unsigned> threads{0};
    thread_local std::mt19937 random(seed_of_delays() * 7919U + threads++);
    if (random() % 3 != 0) return;
    delays() += 1;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
  }

  static std::atomic<int>& delays() {
    static std::atomic<int> made{0};
    return made;
  }

 private:
  static std::atomic<unsigned>& seed_of_delays() {
    static std::atomic<unsigned> seed{0};
    return seed;
  }
  std::vector<std::jthread> busy_;
};

constexpr std::int64_t kWords = 23, kClasses = 3;

/// Sample i is eight words and a class. Reading one draws, as augmentation does.
struct Sentences : torch::data::datasets::Dataset<Sentences> {
  std::int64_t length;
  explicit Sentences(std::int64_t length) : length(length) {}
  torch::data::Example<> get(std::size_t index) override {
    Disturbance::may_wait();
    const auto i = static_cast<std::int64_t>(index);
    const at::Tensor words = (at::arange(8) * (i + 3) + i * i + at::randint(0, 2, {8}, at::kLong)).remainder(kWords);
    return {words, at::scalar_tensor(i % kClasses, at::kLong)};
  }
  std::optional<std::size_t> size() const override { return static_cast<std::size_t>(length); }
};

/// The same samples, one after the other, without a length.
inline data::IterableDataset<torch::data::Example<>> stream_of_sentences(std::int64_t length) {
  return data::IterableDataset([length](std::int64_t) {
    return [length, at = std::size_t{0}]() mutable -> std::optional<torch::data::Example<>> {
      if (at >= static_cast<std::size_t>(length)) return std::nullopt;
      return Sentences(length).get(at++);
    };
  });
}

enum class Layers { linear, batch_norm, convolution, recurrent, attention, sparse, memory, renormed };

/// Classifies sentences by way of `layers`.
struct ReaderImpl : torch::nn::Module {
  Layers layers;
  torch::nn::Embedding words{nullptr};
  torch::nn::Linear hidden{nullptr}, last{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Conv1d convolution{nullptr};
  torch::nn::GroupNorm groups{nullptr};
  torch::nn::LSTM recurrent{nullptr};
  torch::nn::MultiheadAttention attention{nullptr};
  torch::nn::Dropout dropout{nullptr};
  at::Tensor seen;  // a buffer that each forward pass reads and writes
  bool checkpoints = false;

  explicit ReaderImpl(Layers layers, bool drops = true) : layers(layers) {
    const bool sparse = layers == Layers::sparse;
    auto embedding = torch::nn::EmbeddingOptions(kWords, 8).sparse(sparse);
    if (layers == Layers::renormed) embedding.max_norm(1.0);  // forward passes write to the weight
    if (layers == Layers::memory) seen = register_buffer("seen", at::zeros({12}));
    words = register_module("words", torch::nn::Embedding(embedding));
    hidden = register_module("hidden", torch::nn::Linear(8, 12));
    last = register_module("last", torch::nn::Linear(12, kClasses));
    dropout = register_module("dropout", torch::nn::Dropout(drops ? 0.2 : 0.0));
    if (layers == Layers::batch_norm) norm = register_module("norm", torch::nn::BatchNorm1d(12));
    if (layers == Layers::recurrent)
      recurrent = register_module("recurrent", torch::nn::LSTM(torch::nn::LSTMOptions(8, 8).batch_first(true)));
    if (layers == Layers::attention)
      attention = register_module(
          "attention", torch::nn::MultiheadAttention(torch::nn::MultiheadAttentionOptions(8, 2).dropout(0.1)));
    if (layers == Layers::convolution) {
      convolution = register_module("convolution", torch::nn::Conv1d(torch::nn::Conv1dOptions(8, 8, 3).padding(1)));
      groups = register_module("groups", torch::nn::GroupNorm(2, 8));
    }
  }

  at::Tensor forward(const at::Tensor& sentences) {
    Disturbance::may_wait();
    if (!checkpoints) return compute(sentences);
    return nn::checkpoint([this](const at::Tensor& again) { return compute(again); }, sentences);
  }

  at::Tensor compute(const at::Tensor& sentences) {
    at::Tensor x = words(sentences);
    if (Disturbance::is_on() && x.requires_grad()) x.register_hook([](const at::Tensor&) { Disturbance::may_wait(); });
    if (recurrent) x = std::get<0>(recurrent(x));
    if (attention) {
      const at::Tensor by_word = x.transpose(0, 1);
      x = std::get<0>(attention(by_word, by_word, by_word)).transpose(0, 1);
    }
    if (convolution) x = groups(convolution(x.transpose(1, 2))).relu().transpose(1, 2);
    x = hidden(x.mean(1)).tanh();
    if (Disturbance::is_on() && x.requires_grad()) x.register_hook([](const at::Tensor&) { Disturbance::may_wait(); });
    if (norm) x = norm(x);
    if (seen.defined() && is_training() && sentences.size(0) > 0) {
      seen.mul_(0.5).add_(x.detach().mean(0));
      x = x + seen;
    }
    return last(dropout(x));
  }
};
TORCH_MODULE(Reader);

enum class Stepper { sgd, adam, adamw, adagrad, rmsprop, adamw_not_fused };

inline std::unique_ptr<torch::optim::Optimizer> make_stepper(Stepper kind, std::vector<at::Tensor> parameters) {
  using namespace torch::optim;
  switch (kind) {
    case Stepper::sgd: return std::make_unique<SGD>(std::move(parameters), SGDOptions(0.1).momentum(0.9));
    case Stepper::adam: return std::make_unique<Adam>(std::move(parameters), AdamOptions(0.01));
    case Stepper::adagrad: return std::make_unique<Adagrad>(std::move(parameters), AdagradOptions(0.05));
    case Stepper::rmsprop: return std::make_unique<RMSprop>(std::move(parameters), RMSpropOptions(0.01));
    default: return std::make_unique<AdamW>(std::move(parameters), AdamWOptions(0.01));
  }
}

/// A training of logical shards.
struct ExactRun {
  Layers layers = Layers::batch_norm;
  Stepper stepper = Stepper::adamw;
  std::int64_t samples = 45, batch_size = 2;
  int accumulation = 1, epochs = 2;
  bool shuffle = true, dispatch = false, iterable = false, split = false, drop_last = false, even = true;
  bool clip = false, sums = false, dropout = true;
  bool checkpointed = false;
  bool joins = false;  // without even_batches: by join_uneven_inputs, not with empty batches
  int workers = 0;
  Precision precision = Precision::no;
  int logical_ranks = 8;
  int stop_after = -1;                 // updates; -1: never
  std::string save_to{}, load_from{};  // at the stop; before the start

  LaunchConfig config(int ranks) const {
    LaunchConfig config{.cpu = ranks,
                        .mixed_precision = precision,
                        .exact = ExactOptions{.logical_ranks = logical_ranks},
                        .gradient_accumulation_steps = accumulation};
    config.fused_optimizers = stepper != Stepper::adamw_not_fused;
    config.data_loader.split_batches = split;
    config.data_loader.even_batches = even;
    if (!iterable || dispatch) config.data_loader.dispatch_batches = dispatch;
    if (iterable && !dispatch) config.data_loader.dispatch_batches = false;
    return config;
  }
};

/// One rank's part of it.
class ExactTrainer {
 public:
  ExactTrainer(Accelerator& accelerator, const ExactRun& run)
      : accelerator_(accelerator),
        run_(run),
        net_(run.layers, run.dropout),
        inner_(make_stepper(run.stepper, net_->parameters())),
        schedule_(*inner_, {.step_size = 2, .gamma = 0.9}),
        model_(accelerator.prepare(net_)),
        optimizer_(accelerator.prepare(*inner_)),
        scheduler_(accelerator.prepare(schedule_)) {
    net_->checkpoints = run.checkpointed;
  }

  std::string train() {
    const data::DataLoaderOptions options{
        .batch_size = run_.split ? run_.batch_size * run_.logical_ranks : run_.batch_size,
        .shuffle = run_.shuffle && !run_.iterable,
        .drop_last = run_.drop_last,
        .workers = run_.workers};
    if (run_.iterable)
      train_on(accelerator_.prepare(data::DataLoader(stream_of_sentences(run_.samples), options)));
    else
      train_on(accelerator_.prepare(
          data::DataLoader(Sentences(run_.samples).map(torch::data::transforms::Stack<>()), options)));
    Bits weights;
    for (const auto& item : net_->named_parameters()) weights.add(item.value());
    for (const auto& item : net_->named_buffers()) weights.add(item.value());
    weights_ = weights.bytes();
    return bits_.bytes() + weights_;
  }

  /// Parameters and buffers, when it has ended.
  const std::string& weights() const { return weights_; }

 private:
  template <class Loader>
  void train_on(Loader loader) {
    if (!run_.load_from.empty()) accelerator_.load_state(run_.load_from);
    const auto steps = [&] {
      for (auto& batch : loader) {
        step(batch.data, batch.target);
        if (stopped_) break;
      }
    };
    while (loader.epoch() < run_.epochs && !stopped_) {
      run_.joins ? accelerator_.join_uneven_inputs(steps) : steps();
      if (!stopped_ && !run_.even && !run_.joins)
        for (auto i = loader.steps_without_batch(); i > 0; --i)
          step(at::empty({0, 8}, at::kLong), at::empty({0}, at::kLong));
      if (!stopped_) judge();
    }
  }

  void step(const at::Tensor& words, const at::Tensor& classes) {
    const std::int64_t items = words.size(0);
    {
      auto micro_batch = items > 0 ? accelerator_.accumulate(model_) : accelerator_.accumulate_and_close(model_);
      const at::Tensor scores = model_(words);
      const auto reduction = run_.sums ? torch::kSum : torch::kSum;
      at::Tensor loss = torch::nn::functional::cross_entropy(
          scores, classes, torch::nn::functional::CrossEntropyFuncOptions().reduction(reduction));
      if (!run_.sums && items > 0) loss = loss / items;
      if (run_.sums)
        accelerator_.backward(loss, static_cast<double>(items));
      else
        accelerator_.backward(loss);
      if (run_.clip || run_.layers == Layers::sparse)
        if (const at::Tensor norm = accelerator_.clip_grad_norm_(model_, 0.5); norm.defined()) bits_.add(norm);
      Disturbance::may_wait();
      optimizer_.step();
      Disturbance::may_wait();
      scheduler_.step();
      optimizer_.zero_grad();
      if (run_.joins) return;  // a rank that has ended answers nothing else
      if (const auto mean = accelerator_.window_mean(loss, items > 0 ? 1 : 0)) bits_.add(*mean);
    }
    if (!accelerator_.sync_gradients()) return;
    updates_ += 1;
    if (updates_ != run_.stop_after) return;
    stopped_ = true;
    if (!run_.save_to.empty()) accelerator_.save_state(run_.save_to);
  }

  // What an evaluation gathers, in order; it draws.
  void judge() {
    const torch::NoGradGuard no_grad;
    auto loader = accelerator_.prepare(
        data::DataLoader(Sentences(19).map(torch::data::transforms::Stack<>()), {.batch_size = run_.split ? 8 : 1}));
    const auto judge_batch = [&](const at::Tensor& words) {
      bits_.add(accelerator_.gather_for_metrics(at::dropout(model_(words), run_.dropout ? 0.2 : 0.0, true)));
    };
    net_->eval();
    for (auto& batch : loader) judge_batch(batch.data);
    if (!run_.even)
      for (auto i = loader.steps_without_batch(); i > 0; --i) judge_batch(at::empty({0, 8}, at::kLong));
    net_->train();
  }

  Accelerator& accelerator_;
  const ExactRun& run_;
  Reader net_;
  std::unique_ptr<torch::optim::Optimizer> inner_;
  optim::StepLR schedule_;
  nn::Model<ReaderImpl> model_;
  optim::AcceleratedOptimizer optimizer_;
  optim::AcceleratedScheduler scheduler_;
  Bits bits_;
  std::string weights_;
  int updates_ = 0;
  bool stopped_ = false;
};

/// All that the training has made on the ranks of `config`. They differ in nothing but what gathers leave to rank 0, so
/// it is rank 0's; nothing where their weights differ.
inline std::string bits_of(const ExactRun& run, const LaunchConfig& config) {
  std::string bits;
  std::vector<std::string> weights(std::max<std::size_t>(config.devices.size(), config.cpu ? *config.cpu : 0));
  launch(config, [&](Accelerator& accelerator) {
    ExactTrainer trainer(accelerator, run);
    const std::string mine = trainer.train();
    weights[static_cast<std::size_t>(accelerator.rank())] = trainer.weights();
    if (accelerator.is_main()) bits = mine;
  });
  const bool alike = std::all_of(weights.begin(), weights.end(), [&](const auto& its) { return its == weights[0]; });
  return alike ? bits : std::string();
}

inline std::string bits_of(const ExactRun& run, int ranks) { return bits_of(run, run.config(ranks)); }

/// Looks words up several times each, with factors, beside a number that is always there.
struct LookupsImpl : torch::nn::Module {
  torch::nn::Embedding words{torch::nn::EmbeddingOptions(4, 3).sparse(true)};
  at::Tensor number = register_parameter("number", at::ones({1}));

  LookupsImpl() { register_module("words", words); }

  at::Tensor forward(const at::Tensor& entries, const at::Tensor& factors) {
    return entries.defined() ? number.sum() + (words(entries) * factors).sum() : number.sum();
  }
};
TORCH_MODULE(Lookups);

/// Sparse gradients, norms and weights of a training of which only the logical shards in `with`, a bit each, look
/// anything up: each of them the same words several times, with factors whose sum depends on their order.
inline std::string bits_of_lookups(LaunchConfig config, int logical_ranks, unsigned with, bool sums) {
  config.exact = ExactOptions{.logical_ranks = logical_ranks};
  std::string all;
  launch(config, [&](Accelerator& a) {
    Lookups net;
    auto inner = make_stepper(Stepper::adagrad, net->parameters());
    auto model = a.prepare(net);
    auto optimizer = a.prepare(*inner);
    Bits bits;
    for (int window = 0; window < 2; ++window)
      for (int shard = a.rank(); shard < logical_ranks; shard += a.world_size()) {
        const auto micro_batch = a.accumulate(model);
        auto random = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(100 * window + shard));
        at::Tensor entries, factors;
        if (with >> shard & 1) {
          entries = at::randint(0, 4, {12}, random, at::kLong).to(a.device());
          factors = at::randn({12, 3}, random).mul(at::pow(10.0, at::randint(-3, 4, {12, 1}, random))).to(a.device());
        }
        const at::Tensor loss = model(entries, factors);
        sums ? a.backward(loss, 3.0) : a.backward(loss);
        if (const at::Tensor& gradient = net->words->weight.grad(); a.sync_gradients() && gradient.defined()) {
          bits.add(gradient.is_coalesced());
          bits.add(gradient._indices());
          bits.add(gradient._values());
        }
        if (const at::Tensor norm = a.clip_grad_norm_(model, 10.0); norm.defined()) bits.add(norm);
        optimizer.step();
        optimizer.zero_grad();
      }
    for (const at::Tensor& parameter : net->parameters()) bits.add(parameter);
    if (a.is_main()) all = bits.bytes();
  });
  return all;
}

}  // namespace tandem::test
