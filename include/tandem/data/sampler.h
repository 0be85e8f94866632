#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <torch/data/samplers/base.h>

namespace tandem::data {

/// The order of one epoch: dataset index by position.
class EpochOrder {
 public:
  /// 0, 1, 2, …
  EpochOrder() = default;

  /// `permutation` is contiguous, int64 or int32.
  explicit EpochOrder(at::Tensor permutation);

  /// The dataset's index at `position`, which is not checked.
  std::int64_t operator[](std::int64_t position) const {
    if (wide_) return wide_[position];
    return narrow_ ? narrow_[position] : position;
  }

 private:
  at::Tensor permutation_;
  const std::int64_t* wide_ = nullptr;
  const std::int32_t* narrow_ = nullptr;
};

/// Decides the order of each epoch. An epoch is one `begin` and, when all of it was used, one `exhausted`. A prepared
/// loader draws once for all ranks, on the thread of whichever begins the epoch first.
class Sampler {
 public:
  virtual ~Sampler() = default;

  /// Samples of an epoch over a dataset of `dataset_length`.
  virtual std::int64_t length(std::int64_t dataset_length) const { return dataset_length; }

  /// Order of epoch `epoch` over `length` samples. `dispatched`: rank 0 reads for all.
  virtual EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) = 0;

  /// The last sample of the epoch was taken.
  virtual void exhausted() {}

  /// State of the generator that the next epoch's order is drawn from; undefined when epochs do not depend on those
  /// before them.
  virtual at::Tensor state() const { return {}; }

  /// Goes on from what `state` gave.
  virtual void set_state(const at::Tensor&) {}
};

/// Dataset order.
class SequentialSampler final : public Sampler {
 public:
  EpochOrder begin(std::int64_t, std::int64_t, bool) override { return EpochOrder(); }
};

/// A permutation per epoch from a generator that is seeded once and runs on, drawing what Python's DataLoader with a
/// RandomSampler draws: in shard mode an int64 first, then the permutation, and one more when the epoch is exhausted.
class RandomSampler final : public Sampler {
 public:
  /// Only the low 32 bits of `seed` count, as in Python.
  explicit RandomSampler(std::uint64_t seed);

  /// Draws from a copy of `generator` as it is now.
  explicit RandomSampler(const at::Generator& generator) : generator_(generator.clone()) {}

  /// Throws DataError when there is nothing to shuffle (length 0).
  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;
  void exhausted() override;
  at::Tensor state() const override { return generator_.get_state(); }

  /// Goes on from what `state` gave. Throws what LibTorch throws for the state of another kind of generator.
  void set_state(const at::Tensor& state) override { generator_.set_state(state); }

 private:
  at::Generator generator_;
  std::int64_t length_ = 0;
};

/// A permutation per epoch from a generator freshly seeded with seed + epoch: any epoch can be had at any time.
class SeedableRandomSampler final : public Sampler {
 public:
  /// `seed` is that of epoch 0.
  explicit SeedableRandomSampler(std::uint64_t seed) : seed_(seed) {}

  /// Throws DataError when there is nothing to shuffle (length 0).
  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;

 private:
  std::uint64_t seed_;
};

/// The order of a torch::data sampler, of which each epoch takes all.
class TorchSampler final : public Sampler {
 public:
  /// `length`: samples that `sampler` gives in an epoch.
  TorchSampler(std::shared_ptr<torch::data::samplers::Sampler<>> sampler, std::int64_t length)
      : sampler_(std::move(sampler)), length_(length) {}

  std::int64_t length(std::int64_t) const override { return length_; }

  /// Throws DataError when the sampler gives another number of samples than was said.
  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;

 private:
  std::shared_ptr<torch::data::samplers::Sampler<>> sampler_;
  std::int64_t length_;
};

/// Decides which samples form a batch. The batches are dealt to the ranks whole.
class BatchSampler {
 public:
  using Batches = std::vector<std::vector<std::int64_t>>;  ///< dataset indices, a list a batch

  virtual ~BatchSampler() = default;

  /// Batches of an epoch.
  virtual std::int64_t size() const = 0;

  /// All batches of epoch `epoch`, none of them empty. As in a Sampler, drawn once for all ranks.
  virtual Batches batches(std::int64_t epoch) = 0;
};

}  // namespace tandem::data
