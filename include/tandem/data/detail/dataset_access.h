#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/data/datasets/base.h>
#include <torch/data/datasets/map.h>
#include <torch/data/datasets/stateful.h>

#include "tandem/core/error.h"
#include "tandem/data/batch.h"
#include "tandem/data/detail/batch_memory.h"
#include "tandem/data/iterable.h"
#include "tandem/rng/generators.h"

/// \file
/// How samples are got out of any kind of dataset: by index (map-style) or one after another (streams).
namespace tandem::data {

/// Who reads, for generators and error messages.
struct ReadContext {
  std::uint64_t seed = 0;  ///< of augmentation
  std::int64_t epoch = 0;  ///< from 0
  std::int64_t step = 0;   ///< of the epoch, from 0
  int rank = 0;            ///< that the samples are for
};

// Places for what else is drawn beside samples, among the keys of KeyedGenerator: with these in place of a sample's
// index, or added to it, other numbers come. Transforms of whole batches have those a little below 0 (see get_batch).
inline constexpr std::int64_t kBeginning = std::numeric_limits<std::int64_t>::min();  ///< when an epoch begins
inline constexpr std::int64_t kCollating = -(std::int64_t{1} << 62);  ///< by collations: a batch's first

namespace detail {

template <class T>
struct Unboxed {
  using type = T;
};
template <class T>
struct Unboxed<std::optional<T>> {
  using type = T;
};

template <class T>
struct ElementOf {
  using type = T;
};
template <class T>
struct ElementOf<std::vector<T>> {
  using type = T;
};

template <class Dataset>
inline constexpr bool is_mapped = false;
template <class Source, class Transform>
inline constexpr bool is_mapped<torch::data::datasets::MapDataset<Source, Transform>> = true;

// One sample at a time can be asked for, so that each can have a generator of its own.
template <class Dataset>
constexpr bool gives_single_samples() {
  if constexpr (is_mapped<Dataset>) return gives_single_samples<typename Dataset::DatasetType>() && requires {
      &Dataset::TransformType::apply;
    };
  else
    return requires(Dataset & dataset) { dataset.get(std::size_t{}); };
}

// How many transforms come after each other.
template <class Dataset>
constexpr std::int64_t times_mapped() {
  if constexpr (is_mapped<Dataset>)
    return 1 + times_mapped<typename Dataset::DatasetType>();
  else
    return 0;
}

/// "reading sample 4711 (epoch 0, step 12, for rank 1)"
std::string describe_read(const std::string& what, const ReadContext& context);

/// Throws SampleError nesting the exception that is being handled; cancellation passes as it is.
[[noreturn]] void throw_sample_error(const std::string& what, const ReadContext& context);

std::string name_samples(const std::vector<std::int64_t>& indices);

template <class Dataset>
auto get_sample(Dataset& dataset, std::size_t index) {
  if constexpr (is_mapped<Dataset>) {
    // A MapDataset shows its parts as const only, and applies them as if they were not.
    auto& source = const_cast<typename Dataset::DatasetType&>(dataset.dataset());
    auto& transform = const_cast<typename Dataset::TransformType&>(dataset.transform());
    return transform.apply(get_sample(source, index));
  } else {
    return dataset.get(index);
  }
}

// Asks the dataset for a batch: sample by sample where it can be, so that what a sample's transform draws depends on
// the sample only, otherwise once. Samples that are asked for one by one move to `memory`, if there is one.
template <class Dataset>
auto get_batch(Dataset& dataset, const std::vector<std::int64_t>& indices, const ReadContext& context,
               BatchMemory* memory = nullptr) {
  if constexpr (gives_single_samples<Dataset>()) {
    std::vector<decltype(get_sample(dataset, 0))> samples;
    samples.reserve(indices.size());
    std::optional<rng::KeyedGenerator> generator;
    for (const std::int64_t index : indices) {
      try {
        if (generator)
          generator->restart(index);
        else
          generator.emplace(context.seed, context.epoch, index);
        samples.push_back(get_sample(dataset, static_cast<std::size_t>(index)));
        if (memory) memory->take(samples.back());
      } catch (...) {
        throw_sample_error("sample " + std::to_string(index), context);
      }
    }
    return samples;
  } else if constexpr (is_mapped<Dataset>) {
    auto& source = const_cast<typename Dataset::DatasetType&>(dataset.dataset());
    auto& transform = const_cast<typename Dataset::TransformType&>(dataset.transform());
    auto batch = get_batch(source, indices, context);
    // Below 0, and others for each transform: other numbers than those that samples draw.
    constexpr std::int64_t kTransform = std::int64_t{1} << 48;
    const std::int64_t first = indices.empty() ? 0 : indices.front();
    const rng::KeyedGenerator generator(context.seed, context.epoch, first - times_mapped<Dataset>() * kTransform);
    try {
      return transform.apply_batch(std::move(batch));
    } catch (...) {
      throw_sample_error(name_samples(indices), context);
    }
  } else {
    const rng::KeyedGenerator generator(context.seed, context.epoch, indices.empty() ? 0 : indices.front());
    try {
      const std::vector<std::size_t> request(indices.begin(), indices.end());
      return dataset.get_batch(request);
    } catch (...) {
      throw_sample_error(name_samples(indices), context);
    }
  }
}

// The samples of a torch::data dataset that is asked for a number of them (stateful and stream datasets).
template <class Dataset, class Sample>
SampleStream<Sample> stream_of_torch_dataset(std::shared_ptr<Dataset> dataset, std::int64_t batch_size) {
  using Raw = typename Unboxed<typename Dataset::BatchType>::type;
  if constexpr (requires { dataset->reset(); }) dataset->reset();
  std::int64_t left = -1;  // what a stream dataset has in an epoch; -1: until it gives nothing
  if constexpr (!Dataset::is_stateful)
    if (const auto size = dataset->size()) left = static_cast<std::int64_t>(*size);
  return [dataset, batch_size, left, samples = std::vector<Sample>(), at = std::size_t{0}]() mutable {
    while (at == samples.size()) {
      const std::int64_t wanted = left < 0 ? batch_size : std::min(left, batch_size);
      if (wanted == 0) return std::optional<Sample>();
      std::optional<Raw> raw = dataset->get_batch(static_cast<std::size_t>(wanted));
      if (!raw) return std::optional<Sample>();
      if constexpr (std::is_same_v<Raw, Sample>) {  // a batch already: its rows are the samples
        samples.clear();
        for (std::int64_t row = 0; row < data::batch_size_of(*raw); ++row)
          samples.push_back(data::slice(*raw, row, row + 1));
      } else {
        samples = std::move(*raw);
      }
      at = 0;
      if (samples.empty()) return std::optional<Sample>();
      if (left > 0) left -= std::min<std::int64_t>(left, static_cast<std::int64_t>(samples.size()));
    }
    return std::optional<Sample>(std::move(samples[at++]));
  };
}

}  // namespace detail

/// True for datasets that give samples one after another only.
template <class Dataset>
constexpr bool is_iterable() {
  if constexpr (requires { typename Dataset::SampleType; })
    return true;
  else
    return Dataset::is_stateful || !std::is_same_v<typename Dataset::BatchRequestType, c10::ArrayRef<std::size_t>>;
}

namespace detail {
template <class Dataset>
struct DatasetTypes {
  using Raw = typename Unboxed<typename Dataset::BatchType>::type;  // what it gives at once
  using Sample = typename ElementOf<Raw>::type;
  static constexpr bool collated = std::is_same_v<Raw, Sample>;
};
template <class T>
struct DatasetTypes<IterableDataset<T>> {
  using Raw = std::vector<T>;
  using Sample = T;
  static constexpr bool collated = false;
};
}  // namespace detail

/// What a dataset's samples are; for one that gives ready batches, such a batch.
template <class Dataset>
using SampleOf = typename detail::DatasetTypes<Dataset>::Sample;

/// True for datasets whose batches need no collation.
template <class Dataset>
inline constexpr bool gives_batches = detail::DatasetTypes<Dataset>::collated;

/// The batch that samples are made to without a collation of the user's: numbers become a tensor.
template <class Sample>
using DefaultBatch = std::conditional_t<std::is_arithmetic_v<Sample>, at::Tensor, Sample>;

/// Samples to a batch: numbers to a tensor, tensors stacked along a new dim 0, in any nesting. Throws DataError when
/// shapes differ, when samples hold no tensor, or when they hold numbers beside tensors, for which their type has one
/// place only. What lies in `memory` already is not copied again.
template <class Sample>
DefaultBatch<Sample> default_collate(std::vector<Sample> samples, const detail::BatchMemory* memory = nullptr) {
  if constexpr (std::is_floating_point_v<Sample>) {
    return at::tensor(std::vector<double>(samples.begin(), samples.end()), c10::CppTypeToScalarType<Sample>::value);
  } else if constexpr (std::is_arithmetic_v<Sample>) {
    return at::tensor(std::vector<std::int64_t>(samples.begin(), samples.end()), at::kLong);
  } else {
    if (samples.size() > 1 && tensors_of(samples.front()).empty())
      throw DataError("samples without a tensor cannot be made to a batch; give the loader a collation");
    if (samples.size() > 1 && detail::part_kinds<Sample>().numbers)
      throw DataError(
          "samples with numbers beside their tensors cannot be made to a batch, which would have the first one's only; "
          "make the numbers tensors, or give the loader a collation");
    std::size_t part = 0;
    return data::join_tensors(std::move(samples), [&](const std::vector<at::Tensor>& column) {
      const std::optional<at::Tensor> whole = memory ? memory->whole(part++, column.size()) : std::nullopt;
      return whole ? *whole : stack_samples(column);
    });
  }
}

/// The stream of an epoch of an iterable dataset.
template <class Dataset>
SampleStream<SampleOf<Dataset>> open_stream(const std::shared_ptr<Dataset>& dataset, std::int64_t epoch,
                                            std::int64_t batch_size) {
  if constexpr (requires { typename Dataset::SampleType; })
    return dataset->begin(epoch);
  else
    return detail::stream_of_torch_dataset<Dataset, SampleOf<Dataset>>(dataset, batch_size);
}

}  // namespace tandem::data
