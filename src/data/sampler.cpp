#include "tandem/data/sampler.h"

#include <algorithm>
#include <cmath>
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

void check_size_of_dataset(const char* sampler, const char* of_each, std::int64_t count, std::int64_t length) {
  if (count != length)
    throw ConfigError(std::string(sampler) + " has " + std::to_string(count) + " " + of_each + ", and the dataset " +
                      std::to_string(length) + " samples; use one for each sample");
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

WeightedRandomSampler::WeightedRandomSampler(const std::vector<double>& weights, std::int64_t num_samples,
                                             WeightedSamplerOptions options)
    : weights_(at::tensor(weights, at::kDouble)), num_samples_(num_samples), options_(options) {
  constexpr std::size_t kMost = std::size_t{1} << 24;  // multinomial's
  const auto bad = [](double weight) { return !std::isfinite(weight) || weight < 0; };
  const auto positive = std::count_if(weights.begin(), weights.end(), [](double weight) { return weight > 0; });
  if (const auto found = std::find_if(weights.begin(), weights.end(), bad); found != weights.end())
    throw ConfigError("weight " + std::to_string(found - weights.begin()) + " of a WeightedRandomSampler is " +
                      std::to_string(*found) + "; use numbers from 0");
  if (positive == 0 || weights.size() > kMost)
    throw ConfigError("a WeightedRandomSampler has " + std::to_string(weights.size()) + " weights, " +
                      std::to_string(positive) + " of them above 0; use at least one that is, and at most " +
                      std::to_string(kMost) + " in all");
  if (num_samples < 1 || (!options.replacement && num_samples > positive))
    throw ConfigError("a WeightedRandomSampler is to draw " + std::to_string(num_samples) + " samples" +
                      (num_samples < 1
                           ? "; use 1 or more"
                           : " without replacement, and only " + std::to_string(positive) + " have a weight above 0"));
}

std::int64_t WeightedRandomSampler::length(std::int64_t dataset_length) const {
  check_size_of_dataset("a WeightedRandomSampler", "weights", weights_.numel(), dataset_length);
  return num_samples_;
}

EpochOrder WeightedRandomSampler::begin(std::int64_t, std::int64_t epoch, bool) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(options_.seed + static_cast<std::uint64_t>(epoch));
  return EpochOrder(at::multinomial(weights_, num_samples_, options_.replacement, generator));
}

SubsetRandomSampler::SubsetRandomSampler(std::vector<std::int64_t> indices, std::uint64_t seed)
    : indices_(std::move(indices)), seed_(seed) {
  if (indices_.empty()) throw ConfigError("a SubsetRandomSampler has no indices; give it one or more");
}

std::int64_t SubsetRandomSampler::length(std::int64_t dataset_length) const {
  for (const std::int64_t index : indices_)
    if (index < 0 || index >= dataset_length)
      throw ConfigError("a SubsetRandomSampler has index " + std::to_string(index) + ", and the dataset " +
                        std::to_string(dataset_length) + " samples");
  return static_cast<std::int64_t>(indices_.size());
}

EpochOrder SubsetRandomSampler::begin(std::int64_t, std::int64_t epoch, bool) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed_ + static_cast<std::uint64_t>(epoch));
  const at::Tensor order = at::randperm(static_cast<std::int64_t>(indices_.size()), generator, at::kLong);
  return EpochOrder(at::tensor(indices_, at::kLong).index_select(0, order));
}

LengthGroupedSampler::LengthGroupedSampler(std::vector<std::int64_t> lengths, std::int64_t group, std::uint64_t seed)
    : lengths_(std::move(lengths)), group_(group), seed_(seed) {
  if (lengths_.empty()) throw ConfigError("a LengthGroupedSampler has no lengths; give it one for each sample");
  if (group_ < 1)
    throw ConfigError("the group of a LengthGroupedSampler is " + std::to_string(group_) + "; use 1 or more");
}

std::int64_t LengthGroupedSampler::length(std::int64_t dataset_length) const {
  check_size_of_dataset("a LengthGroupedSampler", "lengths", static_cast<std::int64_t>(lengths_.size()),
                        dataset_length);
  return dataset_length;
}

EpochOrder LengthGroupedSampler::begin(std::int64_t length, std::int64_t epoch, bool) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed_ + static_cast<std::uint64_t>(epoch));
  at::Tensor order = at::randperm(length, generator, at::kLong);
  auto* const indices = order.mutable_data_ptr<std::int64_t>();
  const auto length_of = [this](std::int64_t index) { return lengths_[static_cast<std::size_t>(index)]; };
  std::int64_t* longest = indices;
  for (std::int64_t begin = 0; begin < length; begin += std::min(group_, length)) {
    std::int64_t* const group = indices + begin;
    std::stable_sort(group, group + std::min(group_, length - begin),
                     [&](std::int64_t a, std::int64_t b) { return length_of(a) > length_of(b); });
    if (length_of(*group) > length_of(*longest)) longest = group;
  }
  std::swap(*indices, *longest);
  return EpochOrder(std::move(order));
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
