#pragma once

#include <ATen/core/Tensor.h>

namespace tandem::nn {

/// Whether two tensors of the same sizes lie in memory alike, so that kernels may run over both in order. Strides of
/// dimensions of size 1 have no say in it.
inline bool same_order_in_memory(const at::Tensor& a, const at::Tensor& b) {
  const auto sizes = a.sizes(), strides = a.strides(), others = b.strides();
  if (sizes != b.sizes()) return false;
  for (std::size_t dim = 0; dim < sizes.size(); ++dim)
    if (sizes[dim] != 1 && strides[dim] != others[dim]) return false;
  return true;
}

}  // namespace tandem::nn
