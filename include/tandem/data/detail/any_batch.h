#pragma once

#include <any>
#include <cstdint>
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

#include "tandem/data/batch.h"

namespace tandem::data::detail {

/// A batch of any type, on its way from the dataset to the program. Only the two ends of that way know the type; what
/// is between them moves the batch and reaches its tensors. It is not copied: both would have the same tensors.
class AnyBatch {
 public:
  AnyBatch() = default;  ///< holds no batch
  AnyBatch(AnyBatch&&) noexcept = default;
  AnyBatch& operator=(AnyBatch&&) noexcept = default;
  ~AnyBatch() = default;

  /// Holds `batch`.
  template <class Batch>
  static AnyBatch of(Batch batch) {
    AnyBatch any;
    any.held_.emplace<Batch>(std::move(batch));
    any.visit_ = [](std::any& held, Visitor visit) { data::for_each_tensor(*std::any_cast<Batch>(&held), visit); };
    return any;
  }

  /// Whether it holds a batch.
  explicit operator bool() const { return held_.has_value(); }

  /// The batch. Throws std::bad_any_cast when it is of another type, or when there is none.
  template <class Batch>
  Batch& as() {
    return std::any_cast<Batch&>(held_);
  }

  /// Calls `visit` for each of its tensors: see data::for_each_tensor. There is a batch.
  void for_each_tensor(c10::function_ref<void(at::Tensor&)> visit) { visit_(held_, visit); }

 private:
  using Visitor = c10::function_ref<void(at::Tensor&)>;

  std::any held_;
  void (*visit_)(std::any& held, Visitor visit) = nullptr;
};

}  // namespace tandem::data::detail
