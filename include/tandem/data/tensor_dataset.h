#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

#include "tandem/core/error.h"
#include "tandem/data/batch.h"
#include "tandem/data/detail/fingerprint.h"

namespace tandem::data {

/// Tensors in memory as a dataset: sample i is row i (along dim 0) of each. They are given in the form that a batch
/// shall have, any nesting that `for_each_tensor` visits; parts that are no tensors are the same in every batch.
///
///     TensorDataset(images, labels)             // a batch is torch::data::Example<>
///     TensorDataset(std::tuple{a, b, c})        // std::tuple of three tensors
///     TensorDataset(images)                     // at::Tensor
///
/// Copies share the tensors' memory. A batch never does: writing to it leaves the dataset as it is.
template <class Batch>
class TensorDataset : public torch::data::datasets::BatchDataset<TensorDataset<Batch>, Batch> {
 public:
  /// All samples, tensors of equal size along dim 0, on any device. Throws DataError when sizes differ, when a tensor
  /// has no dimension, or when there is no tensor.
  explicit TensorDataset(Batch samples) : samples_(std::move(samples)), size_(common_size()) {}

  /// Inputs and targets: the same as TensorDataset(torch::data::Example<>(data, target)).
  TensorDataset(at::Tensor data, at::Tensor target) requires std::same_as<Batch, torch::data::Example<>>
      : TensorDataset(Batch(std::move(data), std::move(target))) {}

  /// The rows with these indices, [B, …] of each tensor, as new tensors on the same device. Throws DataError when an
  /// index is out of range.
  Batch get_batch(c10::ArrayRef<std::size_t> indices) override {
    for (std::size_t index : indices)
      if (index >= size_)
        throw DataError("sample " + std::to_string(index) + " does not exist; the tensors have " +
                        std::to_string(size_) + " rows");
    // Indices in range are the same bits as std::int64_t, so that the tensor can refer to them; nothing writes to it.
    const at::Tensor rows =
        at::from_blob(const_cast<std::size_t*>(indices.data()), {static_cast<std::int64_t>(indices.size())}, at::kLong);
    return map_tensors(samples_, [&](const at::Tensor& t) { return t.index_select(0, rows.to(t.device())); });
  }

  /// Rows of the tensors.
  std::optional<std::size_t> size() const override { return size_; }

  /// Of some of the rows: see HasFingerprint.
  std::uint64_t fingerprint() { return detail::fingerprint_of_some(*this); }

 private:
  std::size_t common_size() {
    const std::vector<at::Tensor*> tensors = tensors_of(samples_);
    if (tensors.empty()) throw DataError("a TensorDataset needs at least one tensor");
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i]->dim() == 0)
        throw DataError("tensor " + std::to_string(i) + " of a TensorDataset has no dimension; dim 0 counts samples");
      if (tensors[i]->size(0) != tensors[0]->size(0))
        throw DataError("tensors of a TensorDataset differ along dim 0: tensor 0 has " +
                        std::to_string(tensors[0]->size(0)) + " rows, tensor " + std::to_string(i) + " has " +
                        std::to_string(tensors[i]->size(0)));
    }
    return static_cast<std::size_t>(tensors[0]->size(0));
  }

  Batch samples_;
  std::size_t size_;
};

/// Inputs and targets make batches of torch::data::Example.
TensorDataset(at::Tensor, at::Tensor)->TensorDataset<torch::data::Example<>>;

}  // namespace tandem::data
