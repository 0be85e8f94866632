// Datasets of indices, and what loaders make of them.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include <torch/data/datasets/base.h>

#include "support/ranks.h"

namespace tandem::test {

/// Sample i is i. Counts its reads; copies share the count.
struct Indices : torch::data::datasets::BatchDataset<Indices, at::Tensor> {
  std::size_t length;
  std::shared_ptr<std::atomic<int>> reads = std::make_shared<std::atomic<int>>(0);
  explicit Indices(std::size_t length) : length(length) {}
  at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
    *reads += 1;
    return at::tensor(std::vector<std::int64_t>(indices.begin(), indices.end()), at::kLong);
  }
  std::optional<std::size_t> size() const override { return length; }
};

using Batch = std::vector<std::int64_t>;
using Epoch = std::vector<Batch>;

inline Batch list(const at::Tensor& tensor) {
  return Batch(tensor.const_data_ptr<std::int64_t>(), tensor.const_data_ptr<std::int64_t>() + tensor.numel());
}

template <class Loader>
Epoch one_epoch(const Loader& loader) {
  Epoch epoch;
  for (auto& batch : loader) epoch.push_back(list(batch));
  return epoch;
}

/// The epochs that each rank sees of `loader`.
template <class Loader>
std::vector<std::vector<Epoch>> epochs_on_ranks(int ranks, const Loader& loader,
                                                data::DataLoaderConfiguration configuration = {}, int epochs = 1,
                                                std::int64_t skip = 0) {
  return on_ranks<std::vector<Epoch>>(ranks, {.data_loader = configuration}, [&](Accelerator& accelerator) {
    auto prepared = accelerator.prepare(loader);
    if (skip > 0) prepared = prepared.skip_first_batches(skip);
    std::vector<Epoch> result;
    for (int epoch = 0; epoch < epochs; ++epoch) result.push_back(one_epoch(prepared));
    return result;
  });
}

/// Sample i is i and a random number; every seventh takes longer than the others.
struct Augmented : torch::data::datasets::Dataset<Augmented, at::Tensor> {
  std::size_t length;
  explicit Augmented(std::size_t length) : length(length) {}
  at::Tensor get(std::size_t index) override {
    if (index % 7 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
    return at::stack({at::scalar_tensor(static_cast<double>(index)), at::rand({}).to(at::kDouble)});
  }
  std::optional<std::size_t> size() const override { return length; }
};

/// A stream of 0 .. length-1.
inline data::IterableDataset<std::int64_t> counting(std::int64_t length) {
  return data::IterableDataset([length](std::int64_t) {
    return [length, at = std::int64_t{0}]() mutable {
      return at < length ? std::optional<std::int64_t>(at++) : std::nullopt;
    };
  });
}

}  // namespace tandem::test
