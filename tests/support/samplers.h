// Samplers of every kind that a program may have of its own, by what their orders depend on.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <torch/data/samplers/distributed.h>
#include <torch/data/samplers/random.h>
#include <torch/data/samplers/sequential.h>
#include <torch/serialize/archive.h>

#include "tandem/data/data_loader.h"

namespace tandem::test {

/// A torch::data sampler whose order `shuffle_` makes at each reset. Saves nothing.
class OwnTorchSampler : public torch::data::samplers::Sampler<> {
 public:
  explicit OwnTorchSampler(std::size_t size) : order_(size) {}
  void reset(std::optional<std::size_t>) override {
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    shuffle(order_);
    index_ = 0;
  }
  std::optional<std::vector<std::size_t>> next(std::size_t wanted) override {
    if (index_ == order_.size()) return std::nullopt;
    const auto begin = order_.begin() + static_cast<std::ptrdiff_t>(index_);
    index_ = std::min(index_ + wanted, order_.size());
    return std::vector<std::size_t>(begin, order_.begin() + static_cast<std::ptrdiff_t>(index_));
  }
  void save(torch::serialize::OutputArchive&) const override {}
  void load(torch::serialize::InputArchive&) override {}

 protected:
  virtual void shuffle(std::vector<std::size_t>& order) = 0;
  std::vector<std::size_t> order_;
  std::size_t index_ = 0;
};

/// From LibTorch's default generator.
class DefaultTorchSampler : public OwnTorchSampler {
  using OwnTorchSampler::OwnTorchSampler;
  void shuffle(std::vector<std::size_t>& order) override {
    const at::Tensor drawn = torch::randperm(static_cast<std::int64_t>(order.size()), at::kLong);
    for (std::size_t i = 0; i < order.size(); ++i)
      order[i] = static_cast<std::size_t>(drawn[static_cast<std::int64_t>(i)].item<std::int64_t>());
  }
};

/// From an engine that it has, and does not save.
class EngineTorchSampler : public OwnTorchSampler {
 public:
  using OwnTorchSampler::OwnTorchSampler;

 protected:
  void shuffle(std::vector<std::size_t>& order) override { std::shuffle(order.begin(), order.end(), engine_); }
  std::mt19937 engine_{3};
};

/// From an engine that it saves.
class SavedTorchSampler : public EngineTorchSampler {
 public:
  using EngineTorchSampler::EngineTorchSampler;
  explicit SavedTorchSampler(std::size_t size, std::uint32_t seed) : EngineTorchSampler(size) { engine_.seed(seed); }
  void save(torch::serialize::OutputArchive& archive) const override {
    std::ostringstream text;
    text << engine_;
    archive.write("engine", c10::IValue(text.str()));
  }
  void load(torch::serialize::InputArchive& archive) override {
    c10::IValue text;
    archive.read("engine", text);
    std::istringstream(text.toStringRef()) >> engine_;
  }
};

/// Saves order and place as LibTorch's RandomSampler does, but not its engine.
class HalfSavedTorchSampler : public EngineTorchSampler {
 public:
  using EngineTorchSampler::EngineTorchSampler;
  void save(torch::serialize::OutputArchive& archive) const override {
    archive.write("index", at::scalar_tensor(static_cast<std::int64_t>(index_), at::kLong), true);
    std::vector<std::int64_t> order(order_.begin(), order_.end());
    archive.write("order", at::tensor(order, at::kLong), true);
  }
  void load(torch::serialize::InputArchive& archive) override {
    at::Tensor index, order;
    archive.read("index", index, true);
    archive.read("order", order, true);
    index_ = static_cast<std::size_t>(index.item<std::int64_t>());
    for (std::size_t i = 0; i < order_.size(); ++i)
      order_[i] = static_cast<std::size_t>(order[static_cast<std::int64_t>(i)].item<std::int64_t>());
  }
};

/// Cannot be saved, and says so.
class UnsavableTorchSampler : public EngineTorchSampler {
 public:
  using EngineTorchSampler::EngineTorchSampler;
  void save(torch::serialize::OutputArchive&) const override { throw std::logic_error("not implemented"); }
};

/// In order for two epochs, and then from the default generator: it counts by itself.
class CountingTorchSampler : public DefaultTorchSampler {
 public:
  using DefaultTorchSampler::DefaultTorchSampler;
  void reset(std::optional<std::size_t> size) override {
    DefaultTorchSampler::reset(size);
    if (resets_++ < 2) std::iota(order_.begin(), order_.end(), std::size_t{0});
  }

 private:
  int resets_ = 0;
};

/// Told the epoch, as LibTorch's distributed samplers are.
class ToldTorchSampler : public OwnTorchSampler {
 public:
  using OwnTorchSampler::OwnTorchSampler;
  void set_epoch(std::size_t epoch) { epoch_ = epoch; }

 private:
  void shuffle(std::vector<std::size_t>& order) override {
    std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<std::uint32_t>(epoch_)));
  }
  std::size_t epoch_ = 99;
};

inline data::EpochOrder shuffled(std::int64_t length, std::mt19937& engine) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(length));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::shuffle(order.begin(), order.end(), engine);
  return data::EpochOrder(at::tensor(order, at::kLong));
}

/// From LibTorch's default generator.
struct DefaultSampler final : data::Sampler {
  data::EpochOrder begin(std::int64_t length, std::int64_t, bool) override {
    return data::EpochOrder(torch::randperm(length, at::kLong));
  }
};

/// From the number of the epoch.
struct EpochSampler final : data::Sampler {
  data::EpochOrder begin(std::int64_t length, std::int64_t epoch, bool) override {
    std::mt19937 engine(static_cast<std::uint32_t>(epoch));
    return shuffled(length, engine);
  }
  bool tells_state() const override { return true; }
};

/// From an engine that it does not tell.
struct EngineSampler : data::Sampler {
  std::mt19937 engine{4};
  data::EpochOrder begin(std::int64_t length, std::int64_t, bool) override { return shuffled(length, engine); }
};

/// From an engine whose state it tells, as wide numbers.
struct ToldSampler final : EngineSampler {
  at::Tensor state() const override {
    std::stringstream text;
    text << engine;
    std::vector<std::int64_t> numbers;
    for (std::int64_t number = 0; text >> number;) numbers.push_back(number);
    return at::tensor(numbers, at::kLong).view({5, -1});
  }
  void set_state(const at::Tensor& state) override {
    std::stringstream text;
    for (std::int64_t i = 0; i < state.numel(); ++i) text << state.view({-1})[i].item<std::int64_t>() << ' ';
    text >> engine;
  }
};

/// Draws once more at the end of an epoch, from the engine and from the default generator.
struct EndingSampler final : EngineSampler {
  std::int64_t added = 0;
  data::EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override {
    engine.discard(static_cast<unsigned long long>(added));
    return EngineSampler::begin(length, epoch, dispatched);
  }
  void exhausted() override { added += torch::randint(1, 5, {1}).item<std::int64_t>(); }
};

inline data::BatchSampler::Batches batches_of(const data::EpochOrder& order, std::int64_t length, std::int64_t size) {
  data::BatchSampler::Batches batches;
  for (std::int64_t i = 0; i < length; i += size) {
    batches.emplace_back();
    for (std::int64_t j = i; j < std::min(i + size, length); ++j) batches.back().push_back(order[j]);
  }
  return batches;
}

/// Batches of two of `sampler`'s order.
template <class SamplerOfOrder>
struct BatchesOf final : data::BatchSampler {
  SamplerOfOrder sampler;
  std::int64_t length;
  explicit BatchesOf(std::int64_t length) : length(length) {}
  std::int64_t size() const override { return (length + 1) / 2; }
  Batches batches(std::int64_t epoch) override { return batches_of(sampler.begin(length, epoch, false), length, 2); }
  at::Tensor state() const override { return sampler.state(); }
  void set_state(const at::Tensor& state) override { sampler.set_state(state); }
};

/// A kind of sampler, and options with a new one of it over `size` samples.
struct SamplerKind {
  std::string name;
  std::function<data::DataLoaderOptions(std::int64_t size)> options;
  bool batches = false;
};

template <class TorchDataSampler>
SamplerKind torch_kind(const std::string& name) {
  return {name, [](std::int64_t size) {
            auto sampler = std::make_shared<TorchDataSampler>(static_cast<std::size_t>(size));
            return data::DataLoaderOptions{.sampler = std::make_shared<data::TorchSampler>(sampler, size)};
          }};
}

template <class Sampler>
SamplerKind own_kind(const std::string& name) {
  return {name, [](std::int64_t) { return data::DataLoaderOptions{.sampler = std::make_shared<Sampler>()}; }};
}

template <class Sampler>
SamplerKind batch_kind(const std::string& name) {
  return {name,
          [](std::int64_t size) {
            return data::DataLoaderOptions{.batch_sampler = std::make_shared<BatchesOf<Sampler>>(size)};
          },
          true};
}

inline std::vector<SamplerKind> sampler_kinds() {
  using namespace torch::data::samplers;  // NOLINT: LibTorch's own
  return {torch_kind<RandomSampler>("LibTorch's random"),
          torch_kind<SequentialSampler>("LibTorch's sequential"),
          torch_kind<DistributedRandomSampler>("LibTorch's distributed random"),
          torch_kind<DistributedSequentialSampler>("LibTorch's distributed sequential"),
          torch_kind<DefaultTorchSampler>("torch::data, default generator"),
          torch_kind<EngineTorchSampler>("torch::data, engine"),
          torch_kind<SavedTorchSampler>("torch::data, engine saved"),
          torch_kind<HalfSavedTorchSampler>("torch::data, order saved without the engine"),
          torch_kind<UnsavableTorchSampler>("torch::data, save throws"),
          torch_kind<CountingTorchSampler>("torch::data, counts epochs"),
          torch_kind<ToldTorchSampler>("torch::data, set_epoch"),
          own_kind<DefaultSampler>("default generator"),
          own_kind<EpochSampler>("by epoch"),
          own_kind<EngineSampler>("engine"),
          own_kind<ToldSampler>("engine told"),
          own_kind<EndingSampler>("draws at the end"),
          {"weighted",
           [](std::int64_t size) {
             std::vector<double> weights;
             for (std::int64_t i = 0; i < size; ++i) weights.push_back(static_cast<double>(i % 3));
             const data::WeightedSamplerOptions seeded{.seed = 5};
             return data::DataLoaderOptions{.sampler =
                                                std::make_shared<data::WeightedRandomSampler>(weights, size, seeded)};
           }},
          {"subset",
           [](std::int64_t size) {
             std::vector<std::int64_t> indices;
             for (std::int64_t i = 0; i < size; ++i) indices.push_back(i / 2);
             return data::DataLoaderOptions{.sampler = std::make_shared<data::SubsetRandomSampler>(indices, 6)};
           }},
          {"by length",
           [](std::int64_t size) {
             std::vector<std::int64_t> lengths;
             for (std::int64_t i = 0; i < size; ++i) lengths.push_back(i * 5 % 7);
             return data::DataLoaderOptions{.sampler = std::make_shared<data::LengthGroupedSampler>(lengths, 8, 7)};
           }},
          batch_kind<DefaultSampler>("batches, default generator"),
          batch_kind<EngineSampler>("batches, engine"),
          batch_kind<ToldSampler>("batches, engine told")};
}

}  // namespace tandem::test
