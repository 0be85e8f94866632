#pragma once

#include <torch/nn/module.h>

namespace train {

/// What is trained: a module of one input, and one row of scores for each target.
class Net : public torch::nn::Module {
 public:
  /// scores [targets, classes].
  virtual at::Tensor forward(const at::Tensor& inputs) = 0;
};

}  // namespace train
