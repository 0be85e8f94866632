// Attention as the models have it.
#pragma once

#include <vector>

#include <ATen/ATen.h>

#include "models/linear.h"

namespace tandem::models {

/// Queries, keys and values of `x`, [B, T, width] each, out of one weight: of one product on GPUs, of three on the CPU.
/// `all` gives them side by side, `each` each by itself.
///
/// A GPU that waits for launches wants one, and its kernels take parts of a wide tensor as well as whole ones. The
/// CPU's attention is faster with whole ones, and their gradients need not be put together.
template <class All, class Each>
std::vector<at::Tensor> project(const at::Tensor& x, const All& all, const Each& each) {
  return x.is_cpu() ? each() : all().chunk(3, -1);
}

/// Of a linear layer's weight, [3 width, width], and bias.
inline std::vector<at::Tensor> project_linearly(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return project(
      x, [&] { return linear(x, weight, bias); },
      [&]() -> std::vector<at::Tensor> {
        const auto weights = weight.chunk(3), biases = bias.chunk(3);
        // The last one first: the order in which their gradients of `x` add up goes by it, and bits with that.
        const at::Tensor values = linear(x, weights[2], biases[2]), keys = linear(x, weights[1], biases[1]);
        return {linear(x, weights[0], biases[0]), keys, values};
      });
}

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
