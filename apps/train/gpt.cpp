#include "gpt.h"

#include <torch/nn/functional/linear.h>
#include <torch/nn/modules/container/modulelist.h>

#include "tandem/nn/checkpoint.h"

namespace train {
namespace {

namespace nn = torch::nn;

constexpr std::int64_t kBytes = 256;

nn::LayerNorm layer_norm(std::int64_t width) { return nn::LayerNorm(nn::LayerNormOptions({width})); }

}  // namespace

// x += attention(norm(x)), then x += mlp(norm(x)).
class Gpt::Block : public nn::Module {
 public:
  explicit Block(const GptOptions& options)
      : heads_(options.heads),
        dropout_(options.dropout),
        ln1_(register_module("ln1", layer_norm(options.width))),
        qkv_(register_module("qkv", nn::Linear(options.width, 3 * options.width))),
        proj_(register_module("proj", nn::Linear(options.width, options.width))),
        ln2_(register_module("ln2", layer_norm(options.width))),
        fc_(register_module("fc", nn::Linear(options.width, 4 * options.width))),
        out_(register_module("out", nn::Linear(4 * options.width, options.width))) {}

  // [B, T, width] to the same.
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor attended = x + drop(proj_(attention(ln1_(x))));
    return attended + drop(out_(at::gelu(fc_(ln2_(attended)))));
  }

 private:
  // Queries, keys and values by a product each: the kernel takes them faster than as parts of one wide tensor, and
  // their gradients need not be put together.
  at::Tensor attention(const at::Tensor& x) const {
    const auto weights = qkv_->weight.chunk(3), biases = qkv_->bias.chunk(3);
    const auto heads = [&](std::size_t part) {
      return nn::functional::linear(x, weights[part], biases[part]).unflatten(2, {heads_, -1}).transpose(1, 2);
    };
    const double dropout = is_training() ? dropout_ : 0.0;
    return at::scaled_dot_product_attention(heads(0), heads(1), heads(2), {}, dropout, /*is_causal=*/true)
        .transpose(1, 2)
        .flatten(2);
  }

  at::Tensor drop(const at::Tensor& x) const { return at::dropout(x, dropout_, is_training()); }

  std::int64_t heads_;
  double dropout_;
  nn::LayerNorm ln1_;
  nn::Linear qkv_, proj_;
  nn::LayerNorm ln2_;
  nn::Linear fc_, out_;
};

Gpt::Gpt(const GptOptions& options)
    : dropout_(options.dropout),
      checkpoint_(options.checkpoint),
      wte_(register_module("wte", nn::Embedding(kBytes, options.width))),
      wpe_(register_module("wpe", nn::Embedding(options.block_size, options.width))),
      lnf_(nullptr),
      head_(nullptr) {
  nn::ModuleList blocks;
  for (std::int64_t i = 0; i < options.layers; ++i) {
    blocks_.push_back(std::make_shared<Block>(options));
    blocks->push_back(blocks_.back());
  }
  register_module("blocks", blocks);
  lnf_ = register_module("lnf", layer_norm(options.width));
  head_ = register_module("head", nn::Linear(nn::LinearOptions(options.width, kBytes).bias(false)));
}

at::Tensor Gpt::forward(const at::Tensor& bytes) {
  const at::Tensor positions = wpe_->weight.narrow(0, 0, bytes.size(1));
  at::Tensor x = at::dropout(wte_(bytes) + positions, dropout_, is_training());
  for (const auto& block : blocks_) x = checkpoint_ ? tandem::nn::checkpoint(block, x) : block->forward(x);
  return head_(lnf_(x)).flatten(0, 1);
}

}  // namespace train
