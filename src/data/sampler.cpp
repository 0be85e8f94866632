#include "tandem/data/sampler.h"

#include <cstring>
#include <exception>
#include <limits>
#include <sstream>
#include <string>
#include <typeinfo>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <torch/data/samplers/distributed.h>
#include <torch/data/samplers/random.h>
#include <torch/data/samplers/sequential.h>
#include <torch/serialize/archive.h>

#include "tandem/core/error.h"

namespace tandem::data {
namespace {

at::Tensor random_permutation(std::int64_t length, const at::Generator& generator) {
  if (length == 0) throw DataError("an empty dataset cannot be shuffled; give it samples or set shuffle = false");
  // The numbers are the same in either type; the narrow one takes half the memory.
  const bool narrow = length <= std::numeric_limits<std::int32_t>::max();
  return at::randperm(length, generator, at::TensorOptions().dtype(narrow ? at::kInt : at::kLong));
}

using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

std::string bytes_of(OutputArchive& archive) {
  std::ostringstream bytes;
  archive.save_to(bytes);
  return std::move(bytes).str();
}

// What it gives in an epoch depends on the number of the epoch and the default generator only.
bool is_of_libtorch(const torch::data::samplers::Sampler<>& sampler) {
  using namespace torch::data::samplers;  // NOLINT: four names
  const std::type_info& type = typeid(sampler);
  return type == typeid(RandomSampler) || type == typeid(SequentialSampler) ||
         type == typeid(DistributedRandomSampler) || type == typeid(DistributedSequentialSampler);
}

}  // namespace

EpochOrder::EpochOrder(at::Tensor permutation) : permutation_(permutation.contiguous()) {
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

TorchSampler::TorchSampler(std::shared_ptr<torch::data::samplers::Sampler<>> sampler, std::int64_t length,
                           SetEpoch set_epoch)
    : sampler_(std::move(sampler)), length_(length), set_epoch_(std::move(set_epoch)) {
  if (!sampler_) throw ConfigError("a TorchSampler needs a sampler of torch::data, not null");
}

EpochOrder TorchSampler::begin(std::int64_t length, std::int64_t epoch, bool) {
  if (set_epoch_)
    set_epoch_(epoch);
  else if (auto* const distributed = dynamic_cast<torch::data::samplers::DistributedSampler<>*>(sampler_.get()))
    distributed->set_epoch(static_cast<std::size_t>(epoch));
  sampler_->reset(std::nullopt);
  at::Tensor order = at::empty({length}, at::kLong);
  auto* indices = order.mutable_data_ptr<std::int64_t>();
  std::int64_t count = 0;
  while (count <= length) {  // it need not have an end
    const auto part = sampler_->next(1024);
    if (!part) break;
    for (const std::size_t index : *part) {
      if (count < length) indices[count] = static_cast<std::int64_t>(index);
      count += 1;
    }
  }
  if (count != length)
    throw DataError("the sampler gave " + std::to_string(count) + " samples in an epoch, " + std::to_string(length) +
                    " were expected");
  return EpochOrder(std::move(order));
}

at::Tensor TorchSampler::state() const {
  if (is_of_libtorch(*sampler_)) return {};
  static const std::string nothing = [] {
    OutputArchive archive;
    return bytes_of(archive);
  }();
  OutputArchive archive;
  try {
    sampler_->save(archive);
  } catch (const std::exception&) {
    return {};  // as classes say that they cannot be saved
  }
  const std::string bytes = bytes_of(archive);
  if (bytes == nothing) return {};
  at::Tensor state = at::empty(static_cast<std::int64_t>(bytes.size()), at::kByte);
  std::memcpy(state.mutable_data_ptr(), bytes.data(), bytes.size());
  return state;
}

void TorchSampler::set_state(const at::Tensor& state) {
  const at::Tensor bytes = state.contiguous();
  InputArchive archive;
  archive.load_from(static_cast<const char*>(bytes.const_data_ptr()), static_cast<std::size_t>(bytes.nbytes()));
  sampler_->load(archive);
}

bool TorchSampler::tells_state() const { return is_of_libtorch(*sampler_); }

}  // namespace tandem::data
