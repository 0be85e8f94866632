#include "gpt.h"

#include <torch/nn/functional/linear.h>
#include <torch/nn/modules/container/modulelist.h>

namespace train {
namespace {

namespace nn = torch::nn;

constexpr std::int64_t kBytes = 256, kWidth = 128, kHeads = 4, kBlocks = 4;

nn::LayerNorm layer_norm() { return nn::LayerNorm(nn::LayerNormOptions({kWidth})); }

}  // namespace

// x += attention(norm(x)), then x += mlp(norm(x)).
class Gpt::Block : public nn::Module {
 public:
  Block()
      : ln1_(register_module("ln1", layer_norm())),
        qkv_(register_module("qkv", nn::Linear(kWidth, 3 * kWidth))),
        proj_(register_module("proj", nn::Linear(kWidth, kWidth))),
        ln2_(register_module("ln2", layer_norm())),
        fc_(register_module("fc", nn::Linear(kWidth, 4 * kWidth))),
        out_(register_module("out", nn::Linear(4 * kWidth, kWidth))) {}

  // [B, T, kWidth] to the same.
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor attended = x + proj_(attention(ln1_(x)));
    return attended + out_(at::gelu(fc_(ln2_(attended))));
  }

 private:
  // Queries, keys and values by a product each: the kernel takes them faster than as parts of one wide tensor, and
  // their gradients need not be put together.
  at::Tensor attention(const at::Tensor& x) const {
    const auto weights = qkv_->weight.chunk(3), biases = qkv_->bias.chunk(3);
    const auto heads = [&](std::size_t part) {
      return nn::functional::linear(x, weights[part], biases[part])
          .unflatten(2, {kHeads, kWidth / kHeads})
          .transpose(1, 2);
    };
    return at::scaled_dot_product_attention(heads(0), heads(1), heads(2), {}, 0.0, /*is_causal=*/true)
        .transpose(1, 2)
        .flatten(2);
  }

  nn::LayerNorm ln1_;
  nn::Linear qkv_, proj_;
  nn::LayerNorm ln2_;
  nn::Linear fc_, out_;
};

Gpt::Gpt()
    : wte_(register_module("wte", nn::Embedding(kBytes, kWidth))),
      wpe_(register_module("wpe", nn::Embedding(kContext, kWidth))),
      lnf_(nullptr),
      head_(nullptr) {
  nn::ModuleList blocks;
  for (std::int64_t i = 0; i < kBlocks; ++i) {
    blocks_.push_back(std::make_shared<Block>());
    blocks->push_back(blocks_.back());
  }
  register_module("blocks", blocks);
  lnf_ = register_module("lnf", layer_norm());
  head_ = register_module("head", nn::Linear(nn::LinearOptions(kWidth, kBytes).bias(false)));
}

at::Tensor Gpt::forward(const at::Tensor& bytes) {
  at::Tensor x = wte_(bytes) + wpe_->weight;
  for (const auto& block : blocks_) x = block->forward(x);
  return head_(lnf_(x)).flatten(0, 1);
}

}  // namespace train
