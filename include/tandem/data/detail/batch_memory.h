#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/data/batch.h"

namespace tandem::data::detail {

/// The memory of a batch whose samples come one by one: each moves there at once, so that samples and batch are not in
/// memory side by side. A tensor that is not as the first sample's, small, or not on the CPU stays where it is.
class BatchMemory {
 public:
  explicit BatchMemory(std::size_t samples) : samples_(static_cast<std::int64_t>(samples)) {}

  /// Makes the tensors of the next sample rows of the batch's.
  template <class Sample>
  void take(Sample& sample) {
    std::size_t part = 0;
    data::for_each_tensor(sample, [&](at::Tensor& tensor) { take_part(part++, tensor); });
    taken_ += 1;
  }

  /// Tensor `part` of the batch, when that of each of `samples` samples lies there.
  std::optional<at::Tensor> whole(std::size_t part, std::size_t samples) const;

 private:
  struct Part {
    at::Tensor tensor;      // of the batch; undefined: its samples stay where they are
    std::size_t taken = 0;  // samples
  };

  void take_part(std::size_t part, at::Tensor& tensor);

  const std::int64_t samples_;
  std::int64_t taken_ = 0;
  std::vector<Part> parts_;
};

}  // namespace tandem::data::detail
