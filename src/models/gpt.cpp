#include "tandem/models/gpt.h"

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "models/attention.h"
#include "models/call_layer.h"

namespace tandem::models {
namespace {

torch::nn::LayerNorm gpt_norm(std::int64_t width) { return torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})); }

}  // namespace

// x += attention(norm(x)), then x += mlp(norm(x)).
class Gpt::Block : public torch::nn::Module {
 public:
  explicit Block(const GptOptions& options)
      : heads_(options.heads),
        dropout_(options.dropout),
        ln1_(register_module("ln1", gpt_norm(options.width))),
        qkv_(register_module("qkv", torch::nn::Linear(options.width, 3 * options.width))),
        proj_(register_module("proj", torch::nn::Linear(options.width, options.width))),
        ln2_(register_module("ln2", gpt_norm(options.width))),
        fc_(register_module("fc", torch::nn::Linear(options.width, 4 * options.width))),
        out_(register_module("out", torch::nn::Linear(4 * options.width, options.width))) {}

  // [B, T, width] to the same.
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor attended = x + drop(linear(attention(ln1_(x)), proj_));
    return attended + drop(linear(at::gelu(linear(ln2_(attended), fc_)), out_));
  }

 private:
  at::Tensor attention(const at::Tensor& x) {
    const auto parts = project_linearly(x, qkv_->weight, qkv_->bias);
    return attend(parts[0], parts[1], parts[2],
                  {.heads = heads_, .dropout = is_training() ? dropout_ : 0.0, .causal = true});
  }

  at::Tensor drop(const at::Tensor& x) const { return at::dropout(x, dropout_, is_training()); }

  std::int64_t heads_;
  double dropout_;
  torch::nn::LayerNorm ln1_;
  torch::nn::Linear qkv_, proj_;
  torch::nn::LayerNorm ln2_;
  torch::nn::Linear fc_, out_;
};

Gpt::Gpt(const GptOptions& options)
    : dropout_(options.dropout),
      checkpoint_(options.checkpoint),
      wte_(register_module("wte", torch::nn::Embedding(options.vocabulary, options.width).ptr())),
      wpe_(register_module("wpe", torch::nn::Embedding(options.block_size, options.width).ptr())) {
  torch::nn::ModuleList blocks;
  for (std::int64_t i = 0; i < options.layers; ++i) {
    blocks_.push_back(std::make_shared<Block>(options));
    blocks->push_back(blocks_.back());
  }
  register_module("blocks", blocks);
  lnf_ = register_module("lnf", gpt_norm(options.width).ptr());
  head_ = register_module(
      "head", torch::nn::Linear(torch::nn::LinearOptions(options.width, options.vocabulary).bias(false)).ptr());
}

at::Tensor Gpt::forward(const at::Tensor& tokens) {
  const at::Tensor positions = wpe_->weight.narrow(0, 0, tokens.size(1));
  at::Tensor x = at::dropout(wte_->forward(tokens) + positions, dropout_, is_training());
  for (const auto& block : blocks_) x = call_layer(block, x, checkpoint_);
  return head_->forward(lnf_->forward(x)).flatten(0, 1);
}

}  // namespace tandem::models
