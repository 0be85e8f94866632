#pragma once

#include <any>
#include <cstdint>
#include <functional>
#include <memory>
#include <typeinfo>
#include <vector>

#include "tandem/data/detail/any_batch.h"
#include "tandem/data/detail/batch_bytes.h"
#include "tandem/data/detail/dataset_access.h"
#include "tandem/data/detail/sample_window.h"

namespace tandem::data::detail {

/// Reads the samples with these indices as one batch. Any thread.
using ReadBatch = std::function<AnyBatch(const std::vector<std::int64_t>& indices, const ReadContext& context)>;

/// Rows [begin, end) of a batch, as views.
using SliceBatch = std::function<AnyBatch(AnyBatch& batch, std::int64_t begin, std::int64_t end)>;

/// Makes a batch of samples, which are a std::vector of them. Any thread.
using CollateSamples = std::function<AnyBatch(std::any samples)>;

/// Makes the windows of one stream, one for each epoch.
using MakeWindow = std::function<std::unique_ptr<SampleWindow>()>;

/// A dataset, and how batches are made of it, as a DataLoader gives it to what prepares it: whatever the types are.
struct AnyDataset {
  const std::type_info* type;         ///< of the dataset
  const std::type_info* sample_type;  ///< of what it gives
  const std::type_info* batch_type;   ///< of what is made of that

  /// See DataLoader::length.
  std::function<std::int64_t()> length = {};

  BatchBytes bytes = {};  ///< how batches go to other machines

  // Of a map-style dataset; null for an iterable one.
  ReadBatch read = {};
  SliceBatch slice = {};                             ///< divides a batch that was read for all ranks
  std::function<void(std::int64_t)> set_epoch = {};  ///< null too where the dataset has none
  std::function<std::uint64_t()> fingerprint = {};   ///< see HasFingerprint; null too where the dataset has none

  // Of an iterable dataset; null for a map-style one.
  CollateSamples collate = {};
  /// For a stream of its own: the dataset is copied, if it can be. `at_once`: see SampleWindowOf.
  std::function<MakeWindow(std::int64_t at_once)> make_windows = {};

  bool iterable() const { return static_cast<bool>(make_windows); }  ///< whether it has no indices
};

}  // namespace tandem::data::detail
