#include "tandem/data/sampler.h"

#include <limits>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include "tandem/core/error.h"

namespace tandem::data {
namespace {

at::Tensor random_permutation(std::int64_t length, const at::Generator& generator) {
  if (length == 0) throw DataError("an empty dataset cannot be shuffled; give it samples or set shuffle = false");
  // The numbers are the same in either type; the narrow one takes half the memory.
  const bool narrow = length <= std::numeric_limits<std::int32_t>::max();
  return at::randperm(length, generator, at::TensorOptions().dtype(narrow ? at::kInt : at::kLong));
}

}  // namespace

EpochOrder::EpochOrder(at::Tensor permutation) : permutation_(std::move(permutation)) {
  if (permutation_.scalar_type() == at::kInt)
    narrow_ = permutation_.const_data_ptr<std::int32_t>();
  else
    wide_ = permutation_.const_data_ptr<std::int64_t>();
}

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

EpochOrder TorchSampler::begin(std::int64_t length, std::int64_t, bool) {
  sampler_->reset(std::nullopt);
  at::Tensor order = at::empty({length}, at::kLong);
  auto* indices = order.mutable_data_ptr<std::int64_t>();
  std::int64_t count = 0;
  while (const auto part = sampler_->next(1024))
    for (const std::size_t index : *part) {
      if (count < length) indices[count] = static_cast<std::int64_t>(index);
      count += 1;
    }
  if (count != length)
    throw DataError("the sampler gave " + std::to_string(count) + " samples in an epoch, " + std::to_string(length) +
                    " were expected");
  return EpochOrder(std::move(order));
}

}  // namespace tandem::data
