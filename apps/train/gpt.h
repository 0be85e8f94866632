#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "net.h"

namespace train {

constexpr std::int64_t kContext = 128;  ///< bytes that Gpt sees of a text

/// A decoder-only transformer over bytes: learned positions, 4 pre-norm blocks of width 128 with 4 heads, untied head.
/// Input int64 [B, kContext], scores [B * kContext, 256]. 875,264 parameters.
class Gpt : public Net {
 public:
  Gpt();
  at::Tensor forward(const at::Tensor& bytes) override;

 private:
  class Block;

  torch::nn::Embedding wte_, wpe_;
  std::vector<std::shared_ptr<Block>> blocks_;
  torch::nn::LayerNorm lnf_;
  torch::nn::Linear head_;
};

}  // namespace train
