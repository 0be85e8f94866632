#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <torch/data/datasets/base.h>

#include "tandem/data/batch.h"
#include "tandem/data/loader_base.h"

namespace tandem::data {

/// How a DataLoader makes batches of its dataset.
struct DataLoaderOptions {
  std::int64_t batch_size = 1;             ///< samples of a rank's batch (of all ranks' with split_batches)
  bool shuffle = false;                    ///< another order each epoch
  std::optional<std::uint64_t> seed = {};  ///< of the shuffling; default: from the master seed, equal on all ranks
  bool drop_last = false;                  ///< leave out the samples that do not fill a batch of every rank
};

/// A dataset and how to batch it. `Accelerator::prepare` makes of it the loader that a rank iterates over.
///
///     tandem::data::DataLoader train(mnist("data/mnist"), {.batch_size = 64, .shuffle = true});
///
/// Any map-style torch::data dataset will do. Where its get_batch returns a vector of samples they are stacked.
template <class Dataset>
class DataLoader {
  using Raw = typename Dataset::BatchType;

  template <class T>
  struct Collated {
    using type = T;
  };
  template <class Sample>
  struct Collated<std::vector<Sample>> {
    using type = Sample;
  };

 public:
  using Batch = typename Collated<Raw>::type;

  explicit DataLoader(Dataset dataset, DataLoaderOptions options = {})
      : dataset_(std::make_shared<Dataset>(std::move(dataset))), options_(options) {}

  const DataLoaderOptions& options() const { return options_; }
  Dataset& dataset() const { return *dataset_; }

  /// Samples in the dataset. Throws DataError when the dataset does not know.
  std::int64_t length() const {
    const std::optional<std::size_t> size = dataset_->size();
    if (!size) throw DataError("the dataset does not know its size; a map-style dataset is needed");
    return static_cast<std::int64_t>(*size);
  }

  /// Reads the samples with these indices as one batch.
  ReadBatch<Batch> reader() const {
    return [dataset = dataset_](const std::vector<std::int64_t>& indices) -> Batch {
      const std::vector<std::size_t> request(indices.begin(), indices.end());
      if constexpr (std::is_same_v<Raw, Batch>)
        return dataset->get_batch(request);
      else
        return stack(dataset->get_batch(request));
    };
  }

 private:
  std::shared_ptr<Dataset> dataset_;
  DataLoaderOptions options_;
};

}  // namespace tandem::data
