#include "tandem/data/padding.h"

#include <string>

namespace tandem::data {

at::Tensor pad_to_longest(const std::vector<at::Tensor>& tensors, double value) {
  const at::Tensor& first = tensors.front();
  std::int64_t longest = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.dim() != first.dim() || tensor.scalar_type() != first.scalar_type() ||
        (first.dim() > 0 && tensor.sizes().slice(1) != first.sizes().slice(1)))
      throw DataError(
          "samples cannot be padded to a batch: one has " +
          c10::str(first.scalar_type(), " ", first.sizes(), ", another ", tensor.scalar_type(), " ", tensor.sizes()) +
          "; they may differ in dim 0 only");
    if (tensor.dim() > 0) longest = std::max(longest, tensor.size(0));
  }
  if (first.dim() == 0) return at::stack(tensors);
  std::vector<std::int64_t> shape = first.sizes().vec();
  shape.front() = longest;
  shape.insert(shape.begin(), static_cast<std::int64_t>(tensors.size()));
  at::Tensor batch = at::full(shape, value, first.options());
  for (std::size_t i = 0; i < tensors.size(); ++i)
    batch[static_cast<std::int64_t>(i)].narrow(0, 0, tensors[i].size(0)).copy_(tensors[i]);
  return batch;
}

}  // namespace tandem::data
