#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tandem/models/net.h"

namespace torch::nn {
class EmbeddingImpl;
class LayerNormImpl;
class LinearImpl;
}  // namespace torch::nn

namespace tandem::models {

/// The gpt's sizes. The defaults are those of benchmarks/peers/train_peer.py.
struct GptOptions {
  std::int64_t block_size = 128;  ///< most bytes that it sees of a text
  std::int64_t layers = 4;        ///< blocks of attention and mlp
  std::int64_t width = 128;       ///< a multiple of heads
  std::int64_t heads = 4;         ///< of a layer's attention
  double dropout = 0.0;           ///< of the embeddings, the attention's weights, and what each half of a layer adds
  std::int64_t vocabulary = 256;  ///< tokens that there are
  bool checkpoint = false;        ///< layers are computed again in backward passes: see nn::checkpoint
};

/// A decoder-only transformer over bytes or tokens: learned positions, pre-norm blocks, untied head. 875,264 parameters
/// by default. Input int64 [B, T] with T at most block_size, scores [B * T, vocabulary].
class Gpt : public Net {
 public:
  /// Freshly initialised, by this thread's default generator.
  explicit Gpt(const GptOptions& options = {});

  at::Tensor forward(const at::Tensor& tokens) override;

 private:
  class Block;

  double dropout_;
  bool checkpoint_;
  std::shared_ptr<torch::nn::EmbeddingImpl> wte_, wpe_;
  std::vector<std::shared_ptr<Block>> blocks_;
  std::shared_ptr<torch::nn::LayerNormImpl> lnf_;
  std::shared_ptr<torch::nn::LinearImpl> head_;
};

}  // namespace tandem::models
