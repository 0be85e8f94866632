// Linear layers as the models call them.
#pragma once

#include <ATen/ATen.h>
#include <torch/nn/functional/linear.h>
#include <torch/nn/modules/linear.h>

namespace tandem::models {

/// x W' + b, on GPUs with the bias in the product, one launch; on the CPU by LibTorch's function, which adds the bias
/// to a tensor of three dims afterwards: other bits.
inline at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return x.is_cpu() ? torch::nn::functional::linear(x, weight, bias) : at::linear(x, weight, bias);
}

/// The layer's result, on GPUs likewise.
inline at::Tensor linear(const at::Tensor& x, torch::nn::Linear& layer) {
  return x.is_cpu() ? layer->forward(x) : at::linear(x, layer->weight, layer->bias);
}

}  // namespace tandem::models
