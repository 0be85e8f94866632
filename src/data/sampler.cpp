#include "tandem/data/sampler.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include "tandem/core/error.h"

namespace tandem::data {
namespace {

at::Tensor random_permutation(std::int64_t length, const at::Generator& generator) {
  if (length == 0) throw DataError("an empty dataset cannot be shuffled; give it samples or set shuffle = false");
  return at::randperm(length, generator, at::TensorOptions().dtype(at::kLong));
}

}  // namespace

RandomSampler::RandomSampler(std::uint64_t seed) : generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {}

EpochOrder RandomSampler::begin(std::int64_t length, std::int64_t, bool dispatched) {
  length_ = length;
  // Python's DataLoader draws the base seed of its workers here; Accelerate's dispatcher never asks it to.
  if (!dispatched && length > 0) at::empty({}, at::kLong).random_(generator_);
  return EpochOrder(random_permutation(length, generator_));
}

void RandomSampler::exhausted() { random_permutation(length_, generator_); }

EpochOrder SeedableRandomSampler::begin(std::int64_t length, std::int64_t epoch, bool) {
  const auto seed = seed_ + static_cast<std::uint64_t>(epoch);
  return EpochOrder(random_permutation(length, at::make_generator<at::CPUGeneratorImpl>(seed)));
}

}  // namespace tandem::data
