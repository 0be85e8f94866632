// Linear layers as the models call them.
#pragma once

#include <ATen/ATen.h>
#include <torch/nn/functional/linear.h>
#include <torch/nn/modules/linear.h>

namespace tandem::models {

/// x W' + b. On GPUs with the bias in the product, one launch; on the CPU as LibTorch's layer, whose bits are known,
/// and which adds the bias to a tensor of three dims afterwards.
inline at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return x.is_cpu() ? torch::nn::functional::linear(x, weight, bias) : at::linear(x, weight, bias);
}

inline at::Tensor linear(const at::Tensor& x, const torch::nn::Linear& layer) {
  return linear(x, layer->weight, layer->bias);
}

}  // namespace tandem::models
