// Attention as the models have it.
#pragma once

#include <ATen/ATen.h>

namespace tandem::models {

/// How attention computes.
struct AttentionOptions {
  std::int64_t heads = 1;
  double dropout = 0.0;  ///< of the weights, as it is now: 0 outside of training
  bool causal = false;   ///< each position sees itself and those before
};

/// Of three tensors [B, T, width], to the same.
inline at::Tensor attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                         const AttentionOptions& options) {
  const auto by_head = [&](const at::Tensor& x) { return x.unflatten(2, {options.heads, -1}).transpose(1, 2); };
  return at::scaled_dot_product_attention(by_head(queries), by_head(keys), by_head(values), {}, options.dropout,
                                          options.causal)
      .transpose(1, 2)
      .flatten(2);
}

}  // namespace tandem::models
