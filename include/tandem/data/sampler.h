#pragma once

#include <cstdint>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

namespace tandem::data {

/// The order of one epoch: dataset index by position.
class EpochOrder {
 public:
  /// 0, 1, 2, …
  EpochOrder() = default;

  /// `permutation` is int64 and contiguous.
  explicit EpochOrder(at::Tensor permutation)
      : permutation_(std::move(permutation)), indices_(permutation_.const_data_ptr<std::int64_t>()) {}

  std::int64_t operator[](std::int64_t position) const { return indices_ ? indices_[position] : position; }

 private:
  at::Tensor permutation_;
  const std::int64_t* indices_ = nullptr;
};

/// Decides the order of each epoch. An epoch is one `begin` and, when all of it was used, one `exhausted`.
class Sampler {
 public:
  virtual ~Sampler() = default;

  /// Order of epoch `epoch` over `length` samples. `dispatched`: rank 0 reads for all.
  virtual EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) = 0;

  /// The last sample of the epoch was taken.
  virtual void exhausted() {}
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

  /// Throws DataError when there is nothing to shuffle (length 0).
  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;
  void exhausted() override;

 private:
  at::Generator generator_;
  std::int64_t length_ = 0;
};

/// A permutation per epoch from a generator freshly seeded with seed + epoch: any epoch can be had at any time.
class SeedableRandomSampler final : public Sampler {
 public:
  explicit SeedableRandomSampler(std::uint64_t seed) : seed_(seed) {}

  /// Throws DataError when there is nothing to shuffle (length 0).
  EpochOrder begin(std::int64_t length, std::int64_t epoch, bool dispatched) override;

 private:
  std::uint64_t seed_;
};

}  // namespace tandem::data
