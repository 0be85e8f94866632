#pragma once

#include <cstddef>
#include <cstdint>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "tandem/optim/scheduler.h"

namespace tandem::test {

/// y = w * x with w = 0, which autocast leaves in float32: the gradient of y.sum() is the sum of x.
struct ScaleImpl : torch::nn::Module {
  explicit ScaleImpl(std::int64_t size = 1) : weight(register_parameter("weight", torch::zeros({size}))) {}
  at::Tensor forward(const at::Tensor& x) { return weight * x; }
  at::Tensor weight;
};
TORCH_MODULE(Scale);

/// Halves the rate at each step.
struct Halving : optim::LRScheduler {
  explicit Halving(torch::optim::Optimizer& optimizer) : LRScheduler(optimizer) {}
  double lr_of(std::size_t, double lr) const override { return lr / 2; }
};

}  // namespace tandem::test
