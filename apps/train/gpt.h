#pragma once

#include <memory>
#include <vector>

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "net.h"
#include "options.h"

namespace train {

/// A decoder-only transformer over bytes: learned positions, pre-norm blocks, untied head. 875,264 parameters by
/// default. Input int64 [B, T] with T at most block_size, scores [B * T, 256].
class Gpt : public Net {
 public:
  explicit Gpt(const GptOptions& options);
  at::Tensor forward(const at::Tensor& bytes) override;

 private:
  class Block;

  double dropout_;
  bool checkpoint_;
  torch::nn::Embedding wte_, wpe_;
  std::vector<std::shared_ptr<Block>> blocks_;
  torch::nn::LayerNorm lnf_;
  torch::nn::Linear head_;
};

}  // namespace train
