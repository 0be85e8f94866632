#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>

#include "tandem/core/error.h"
#include "tandem/data/batch.h"

namespace tandem::data {

/// Samples of different lengths as a batch.
template <class Sample>
struct PaddedBatch {
  Sample samples;      ///< each tensor [B, longest, …]
  at::Tensor lengths;  ///< int64 [B]: how much of each sample's first tensor is no padding
};

/// The parts of a PaddedBatch.
template <class Sample>
auto batch_fields(PaddedBatch<Sample>& batch) {
  return std::tie(batch.samples, batch.lengths);
}

/// Tensors as one, [B, …]: those that are shorter along dim 0 than the longest are filled up with `value` at the end.
/// Throws DataError when they differ otherwise.
at::Tensor pad_to_longest(const std::vector<at::Tensor>& tensors, double value);

/// A loader's collation for samples that differ in length, along dim 0 of their tensors: fills up and says how long
/// each was. With a LengthGroupedSampler little is filled up. What has no dimension, such as a label, is stacked.
///
///     DataLoader(sentences, {.sampler = …}).with_collate(PadCollate{{0, -100}})  // inputs with 0, targets with -100
struct PadCollate {
  std::vector<double> values = {
      0};  ///< that a sample's first tensor, second, … is filled up with; the last for the rest

  /// Throws DataError when samples differ in more than length, or the first tensor has no dimension; ConfigError when
  /// there is no value.
  template <class Sample>
  PaddedBatch<Sample> operator()(std::vector<Sample> samples) const {
    if (values.empty()) throw ConfigError("PadCollate has no value to fill up with");
    std::vector<std::int64_t> lengths;
    for (Sample& sample : samples) {
      const std::vector<at::Tensor*> tensors = tensors_of(sample);
      if (tensors.empty() || tensors.front()->dim() == 0)
        throw DataError("PadCollate is for samples whose first tensor has a length, dim 0");
      lengths.push_back(tensors.front()->size(0));
    }
    std::size_t which = 0;
    Sample padded = data::join_tensors(std::move(samples), [&](const std::vector<at::Tensor>& column) {
      return pad_to_longest(column, values[std::min(which++, values.size() - 1)]);
    });
    return {std::move(padded), at::tensor(lengths, at::kLong)};
  }
};

}  // namespace tandem::data
