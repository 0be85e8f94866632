#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

namespace tandem::test {

/// Six parameters: weights and biases of three layers.
inline torch::nn::Sequential make_net() {
  return torch::nn::Sequential(torch::nn::Linear(6, 16), torch::nn::Tanh(), torch::nn::Linear(16, 9), torch::nn::Tanh(),
                               torch::nn::Linear(9, 2));
}

/// What rank `rank` trains it on in step `step`.
inline at::Tensor batch_of(int rank, int step) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(10 * step + rank + 1));
  return at::randn({5, 6}, generator);
}

}  // namespace tandem::test
