#pragma once

#include <cstdint>

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>

namespace tandem::comm {

/// A sparse tensor without an entry, of the sizes and the type of `like`.
inline at::Tensor no_entries(const at::Tensor& like, std::int64_t sparse_dims) {
  auto values = like.sizes().slice(static_cast<std::size_t>(sparse_dims)).vec();
  values.insert(values.begin(), 0);
  const auto options = like.options().requires_grad(false);
  return at::sparse_coo_tensor(at::empty({sparse_dims, 0}, options.dtype(at::kLong)), at::empty(values, options),
                               like.sizes(), options.layout(at::kSparse));
}

}  // namespace tandem::comm
