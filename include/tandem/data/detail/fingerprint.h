#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/data/batch.h"
#include "tandem/data/detail/dataset_access.h"

namespace tandem::data {

/// A dataset that tells itself apart from others: by a number that is the same on all machines that have the same
/// samples, and almost certainly another one where some differ. Getting it must take no time to speak of, and draw
/// nothing.
template <class Dataset>
concept HasFingerprint = requires(Dataset& dataset) {
  { dataset.fingerprint() } -> std::convertible_to<std::uint64_t>;
};

namespace detail {

/// Of the types, sizes and elements of these tensors; never 0.
std::uint64_t fingerprint_of(const std::vector<at::Tensor*>& tensors);

/// The first, the last and some of the samples between them: `size` is how many there are.
std::vector<std::size_t> some_of(std::size_t size);

/// Of some samples of a dataset that reads them without drawing anything.
template <class Dataset>
std::uint64_t fingerprint_of_some(Dataset& dataset) {
  auto batch = dataset.get_batch(some_of(dataset.size().value()));
  return fingerprint_of(tensors_of(batch));
}

/// What a dataset has for HasFingerprint, that under a transform included; null: nothing.
template <class Dataset>
std::function<std::uint64_t()> fingerprint_function(std::shared_ptr<Dataset> dataset) {
  if constexpr (is_mapped<Dataset>) {
    using Source = typename Dataset::DatasetType;
    auto& source = const_cast<Source&>(dataset->dataset());
    return fingerprint_function(std::shared_ptr<Source>(std::move(dataset), &source));
  } else if constexpr (HasFingerprint<Dataset>) {
    return [dataset = std::move(dataset)] { return static_cast<std::uint64_t>(dataset->fingerprint()); };
  } else {
    return {};
  }
}

}  // namespace detail
}  // namespace tandem::data
