#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

#include "tandem/tandem.h"

namespace train {

/// {inputs, targets}.
using Batch = torch::data::Example<>;

/// Consecutive samples of a dataset that gives batches.
template <class Dataset>
class Section : public torch::data::datasets::BatchDataset<Section<Dataset>, Batch> {
 public:
  Section(Dataset dataset, std::size_t begin, std::size_t size)
      : dataset_(std::move(dataset)), begin_(begin), size_(size) {}

  Batch get_batch(c10::ArrayRef<std::size_t> indices) override {
    std::vector<std::size_t> shifted(indices.begin(), indices.end());
    for (std::size_t& index : shifted) index += begin_;
    return dataset_.get_batch(shifted);
  }

  std::optional<std::size_t> size() const override { return size_; }

  /// Of the whole dataset.
  std::uint64_t fingerprint() { return dataset_.fingerprint(); }

 private:
  Dataset dataset_;
  std::size_t begin_, size_;
};

/// The samples of a dataset, whatever its type. Copies share it.
class Samples {
 public:
  using Loader = tandem::data::PreparedDataLoader<Batch>;
  using Collate = std::function<Batch(std::vector<Batch>)>;

  /// Of a dataset that gives batches, or samples, which become batches by being stacked.
  template <class Dataset>
  explicit Samples(Dataset dataset) : Samples(std::move(dataset), {}) {}

  /// Of a dataset that gives samples, which training collates like this; empty: they are stacked.
  template <class Dataset>
  Samples(Dataset dataset, Collate collate)
      : size_(*dataset.size()),
        read_([dataset](const std::vector<std::size_t>& indices) mutable {
          if constexpr (gives_batches<Dataset>)
            return dataset.get_batch(indices);
          else
            return tandem::data::default_collate(dataset.get_batch(indices));
        }),
        prepare_([dataset, collate](tandem::Accelerator& accelerator, const tandem::data::DataLoaderOptions& options) {
          const tandem::data::DataLoader loader(dataset, options);
          if constexpr (!gives_batches<Dataset>)
            if (collate) return accelerator.prepare(loader.with_collate(collate));
          return accelerator.prepare(loader);
        }) {}

  std::size_t size() const { return size_; }

  /// These samples as one batch, as they are.
  Batch read(const std::vector<std::size_t>& indices) const { return read_(indices); }

  /// A batch of none of them.
  Batch none() const {
    const Batch one = read({0});
    return {one.data.narrow(0, 0, 0), one.target.narrow(0, 0, 0)};
  }

  /// A loader over them. Collective.
  Loader prepare(tandem::Accelerator& accelerator, const tandem::data::DataLoaderOptions& options) const {
    return prepare_(accelerator, options);
  }

 private:
  template <class Dataset>
  static constexpr bool gives_batches = std::is_same_v<typename Dataset::BatchType, Batch>;

  std::size_t size_;
  std::function<Batch(const std::vector<std::size_t>&)> read_;
  std::function<Loader(tandem::Accelerator&, const tandem::data::DataLoaderOptions&)> prepare_;
};

}  // namespace train
