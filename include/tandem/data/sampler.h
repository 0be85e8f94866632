#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
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

  /// `permutation` is of int64 or int32, on the CPU. Throws what LibTorch throws for another type.
  explicit EpochOrder(at::Tensor permutation);

  /// How many positions it has; nothing for 0, 1, 2, …, which goes on.
  std::optional<std::int64_t> length() const {
    return permutation_.defined() ? std::optional(permutation_.numel()) : std::nullopt;
  }

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
/// loader draws once for all ranks, from rank 0's sampler, on the thread of whichever begins the epoch first. What the
/// sampler draws there from the default generators (torch::randperm, …) depends on the loader's seed and on how many
/// epochs were begun before only: it is the same on any number of ranks, and leaves the ranks' generators alone.
/// Generators of C++ (std::mt19937) are the sampler's own, and to be seeded by it.
///
/// A loader whose state was saved goes on with the same orders. Where `state` is all that they depend on, it is given
/// back. Otherwise a new sampler is asked for all epochs before again, and what it gives last is compared with what was
/// given then: another order is a DataError.
class Sampler {
 public:
  virtual ~Sampler() = default;

  /// Samples of an epoch over a dataset of `dataset_length`.
  virtual std::int64_t length(std::int64_t dataset_length) const { return dataset_length; }

  /// Order of epoch `epoch` over `length` samples. `dispatched`: rank 0 reads for all.
  virtual EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) = 0;

  /// The last sample of the epoch was taken.
  virtual void exhausted() {}

  /// What the next epoch's order depends on, such as the state of a generator that is the sampler's own; undefined:
  /// nothing, or it cannot be told. A tensor of any type.
  virtual at::Tensor state() const { return {}; }

  /// Goes on from what `state` gave.
  virtual void set_state(const at::Tensor&) {}

  /// Whether an order depends on `state`, the epoch's number and the default generators only. A sampler that remembers
  /// nothing may say so: going on takes no time then.
  virtual bool tells_state() const { return state().defined(); }
};

/// Dataset order.
class SequentialSampler final : public Sampler {
 public:
  EpochOrder begin(std::int64_t, std::int64_t, bool) override { return EpochOrder(); }
  bool tells_state() const override { return true; }
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
  bool tells_state() const override { return true; }

 private:
  std::uint64_t seed_;
};

/// Options of WeightedRandomSampler.
struct WeightedSamplerOptions {
  bool replacement = true;  ///< a sample may come several times in an epoch
  std::uint64_t seed = 0;   ///< of epoch 0; epoch e has seed + e
};

/// Samples drawn by weight, Python's WeightedRandomSampler: epoch e is what that draws from a generator seeded with
/// seed + e.
class WeightedRandomSampler final : public Sampler {
 public:
  /// `num_samples` an epoch, of a dataset with as many samples as there are weights, which need not add up to 1. Throws
  /// ConfigError for weights that are negative, no numbers, all 0 or more than 2^24, and when there are fewer above 0
  /// than are to be drawn without replacement.
  WeightedRandomSampler(const std::vector<double>& weights, std::int64_t num_samples,
                        WeightedSamplerOptions options = {});

  /// Throws ConfigError when the dataset has another number of samples than there are weights.
  std::int64_t length(std::int64_t dataset_length) const override;

  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;
  bool tells_state() const override { return true; }

 private:
  at::Tensor weights_;
  std::int64_t num_samples_;
  WeightedSamplerOptions options_;
};

/// Some of the samples, in another order each epoch, Python's SubsetRandomSampler: epoch e is what that draws from a
/// generator seeded with seed + e.
class SubsetRandomSampler final : public Sampler {
 public:
  /// `indices` of the dataset. Throws ConfigError when there is none.
  explicit SubsetRandomSampler(std::vector<std::int64_t> indices, std::uint64_t seed = 0);

  /// Throws ConfigError when an index is not in the dataset.
  std::int64_t length(std::int64_t dataset_length) const override;

  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;
  bool tells_state() const override { return true; }

 private:
  std::vector<std::int64_t> indices_;
  std::uint64_t seed_;
};

/// Samples of like length after each other, so that little is padding when they are made to batches (see PadCollate):
/// the samples are shuffled and cut into groups, and each group is sorted, longest first. The first sample is the
/// longest of all, so that memory which does not suffice shows at once. By the rule of Hugging Face's
/// LengthGroupedSampler, from a generator seeded with seed + epoch.
class LengthGroupedSampler final : public Sampler {
 public:
  /// `lengths`: of each sample. `group`: samples of a group, a multiple of what all ranks take in a step, such as 50
  /// times that. Throws ConfigError when there is no length or the group is not positive.
  LengthGroupedSampler(std::vector<std::int64_t> lengths, std::int64_t group, std::uint64_t seed = 0);

  /// Throws ConfigError when the dataset has another number of samples than there are lengths.
  std::int64_t length(std::int64_t dataset_length) const override;

  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;
  bool tells_state() const override { return true; }

 private:
  std::vector<std::int64_t> lengths_;
  std::int64_t group_;
  std::uint64_t seed_;
};

/// The order of a torch::data sampler, which is reset for each epoch and gives all of it. One that takes the number of
/// the epoch (`set_epoch`, as LibTorch's distributed samplers) is told it.
class TorchSampler final : public Sampler {
 public:
  /// `length`: samples that `sampler` gives in an epoch. Throws ConfigError for a null one.
  template <std::derived_from<torch::data::samplers::Sampler<>> TorchDataSampler>
  TorchSampler(std::shared_ptr<TorchDataSampler> sampler, std::int64_t length)
      : TorchSampler(sampler, length, epoch_setter(sampler)) {}

  std::int64_t length(std::int64_t) const override { return length_; }

  /// Throws DataError when the sampler gives another number of samples than was said.
  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;

  /// What the sampler's `save` writes; undefined when that is nothing, when it throws, and for LibTorch's own samplers,
  /// which begin each epoch anew.
  at::Tensor state() const override;

  /// Has the sampler `load` it.
  void set_state(const at::Tensor& state) override;

  /// True for LibTorch's own samplers only: `save` of another one need not write all that it remembers.
  bool tells_state() const override;

 private:
  using SetEpoch = std::function<void(std::int64_t)>;

  TorchSampler(std::shared_ptr<torch::data::samplers::Sampler<>> sampler, std::int64_t length, SetEpoch set_epoch);

  template <class TorchDataSampler>
  static SetEpoch epoch_setter(const std::shared_ptr<TorchDataSampler>& sampler) {
    if constexpr (requires { sampler->set_epoch(std::size_t{}); })
      return [sampler](std::int64_t epoch) { sampler->set_epoch(static_cast<std::size_t>(epoch)); };
    else
      return {};
  }

  std::shared_ptr<torch::data::samplers::Sampler<>> sampler_;
  std::int64_t length_;
  SetEpoch set_epoch_;
};

/// Decides which samples form a batch. The batches are dealt to the ranks whole. As a Sampler's, an epoch is drawn once
/// for all ranks, from default generators of the loader's own, and drawn again when a saved state goes on.
class BatchSampler {
 public:
  using Batches = std::vector<std::vector<std::int64_t>>;  ///< dataset indices, one list for each batch

  virtual ~BatchSampler() = default;

  /// Batches of an epoch.
  virtual std::int64_t size() const = 0;

  /// All batches of epoch `epoch`, none of them empty.
  virtual Batches batches(std::int64_t epoch) = 0;

  /// What the next epoch's batches depend on, such as the state of a generator that is the sampler's own; undefined:
  /// nothing, or it cannot be told. A tensor of any type.
  virtual at::Tensor state() const { return {}; }

  /// Goes on from what `state` gave.
  virtual void set_state(const at::Tensor&) {}

  /// Whether batches depend on `state`, the epoch's number and the default generators only. A sampler that remembers
  /// nothing may say so: going on takes no time then.
  virtual bool tells_state() const { return state().defined(); }
};

}  // namespace tandem::data
