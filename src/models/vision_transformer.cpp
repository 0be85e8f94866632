#include "tandem/models/vision_transformer.h"

#include <cmath>

#include <torch/nn/init.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "models/attention.h"
#include "models/call_layer.h"
#include "tandem/core/error.h"

namespace tandem::models {
namespace {

using torch::nn::LayerNorm;
using torch::nn::LayerNormOptions;
using torch::nn::Linear;

LayerNorm fine_norm(std::int64_t width) { return LayerNorm(LayerNormOptions({width}).eps(1e-6)); }

// As PyTorch's trunc_normal_, which LibTorch lacks: a normal distribution within [-2, 2], with the same numbers.
void truncated_normal_(const at::Tensor& tensor, double std) {
  const at::NoGradGuard no_grad;
  const auto normal_cdf = [](double x) { return (1.0 + std::erf(x / std::sqrt(2.0))) / 2.0; };
  const double least = normal_cdf(-2.0 / std), most = normal_cdf(2.0 / std);
  tensor.uniform_(2 * least - 1, 2 * most - 1).erfinv_().mul_(std * std::sqrt(2.0)).clamp_(-2.0, 2.0);
}

void check(const VisionTransformerOptions& options) {
  if (options.image_size % options.patch_size != 0)
    throw ConfigError("images of " + std::to_string(options.image_size) + " x " + std::to_string(options.image_size) +
                      " are not divided into patches of " + std::to_string(options.patch_size) + " x " +
                      std::to_string(options.patch_size) + "; use a multiple of " + std::to_string(options.patch_size));
  if (options.width % options.heads != 0)
    throw ConfigError("a width of " + std::to_string(options.width) + " does not divide by " +
                      std::to_string(options.heads) + " heads; use a multiple of it");
}

// With the names of PyTorch's MultiheadAttention.
class SelfAttention : public torch::nn::Module {
 public:
  explicit SelfAttention(const VisionTransformerOptions& options)
      : options_(options),
        weight_(register_parameter("in_proj_weight", at::empty({3 * options.width, options.width}))),
        bias_(register_parameter("in_proj_bias", at::zeros({3 * options.width}))),
        out_(register_module("out_proj", Linear(options.width, options.width))) {
    torch::nn::init::xavier_uniform_(weight_);
    torch::nn::init::zeros_(out_->bias);
  }

  at::Tensor forward(const at::Tensor& x) {
    const auto parts = project_linearly(x, weight_, bias_);
    const double dropout = is_training() ? options_.attention_dropout : 0.0;
    return linear(attend(parts[0], parts[1], parts[2], {.heads = options_.heads, .dropout = dropout}), out_);
  }

 private:
  const VisionTransformerOptions& options_;  // the model's
  at::Tensor weight_, bias_;
  Linear out_;
};

}  // namespace

// x += attention(norm(x)), then x += mlp(norm(x)).
class VisionTransformer::Layer : public torch::nn::Module {
 public:
  explicit Layer(const VisionTransformerOptions& options)
      : dropout_(options.dropout),
        ln_1_(register_module("ln_1", fine_norm(options.width))),
        attention_(register_module("self_attention", std::make_shared<SelfAttention>(options))),
        ln_2_(register_module("ln_2", fine_norm(options.width))) {
    const auto mlp = register_module("mlp", std::make_shared<torch::nn::Module>());
    in_ = mlp->register_module("0", Linear(options.width, options.hidden));
    out_ = mlp->register_module("3", Linear(options.hidden, options.width));
    for (const Linear& linear : {in_, out_}) {
      torch::nn::init::xavier_uniform_(linear->weight);
      torch::nn::init::normal_(linear->bias, 0.0, 1e-6);
    }
  }

  // [B, T, width] to the same.
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor attended = x + drop(attention_->forward(ln_1_(x)));
    return attended + drop(linear(drop(at::gelu(linear(ln_2_(attended), in_))), out_));
  }

 private:
  at::Tensor drop(const at::Tensor& x) const { return at::dropout(x, dropout_, is_training()); }

  const double dropout_;
  LayerNorm ln_1_;
  std::shared_ptr<SelfAttention> attention_;
  LayerNorm ln_2_;
  Linear in_{nullptr}, out_{nullptr};
};

VisionTransformer::VisionTransformer(const VisionTransformerOptions& options) : options_(options) {
  check(options_);
  const std::int64_t side = options.image_size / options.patch_size;
  class_token_ = register_parameter("class_token", at::zeros({1, 1, options.width}));
  patches_ = register_module(
      "conv_proj",
      torch::nn::Conv2d(
          torch::nn::Conv2dOptions(options.channels, options.width, options.patch_size).stride(options.patch_size))
          .ptr());
  const auto encoder = register_module("encoder", std::make_shared<torch::nn::Module>());
  positions_ = encoder->register_parameter("pos_embedding", at::empty({1, side * side + 1, options.width}));
  torch::nn::init::normal_(positions_, 0.0, 0.02);
  const auto layers = encoder->register_module("layers", std::make_shared<torch::nn::Module>());
  for (std::int64_t i = 0; i < options.layers; ++i) {
    layers_.push_back(std::make_shared<Layer>(options_));
    layers->register_module("encoder_layer_" + std::to_string(i), layers_.back());
  }
  norm_ = encoder->register_module("ln", fine_norm(options.width).ptr());
  const auto heads = register_module("heads", std::make_shared<torch::nn::Module>());
  head_ = heads->register_module("head", Linear(options.width, options.classes).ptr());
  const auto inputs = static_cast<double>(options.channels * options.patch_size * options.patch_size);
  truncated_normal_(patches_->weight, std::sqrt(1.0 / inputs));
  for (const at::Tensor& zeros : {patches_->bias, head_->weight, head_->bias}) torch::nn::init::zeros_(zeros);
}

at::Tensor VisionTransformer::forward(const at::Tensor& images) {
  if (images.dim() != 4 || images.size(2) != options_.image_size || images.size(3) != options_.image_size)
    throw DataError("this vision transformer takes images of " + std::to_string(options_.image_size) + " x " +
                    std::to_string(options_.image_size) + ", [B, C, H, W]; got " + c10::str(images.sizes()));
  const at::Tensor patches = patches_->forward(images).flatten(2).transpose(1, 2);
  at::Tensor x = at::cat({class_token_.expand({images.size(0), -1, -1}), patches}, 1) + positions_;
  x = at::dropout(x, options_.dropout, is_training());
  for (const auto& layer : layers_) x = call_layer(layer, x, options_.checkpoint);
  return head_->forward(norm_->forward(x).select(1, 0));
}

std::shared_ptr<VisionTransformer> vit_b_16(const VisionTransformerOptions& options) {
  return std::make_shared<VisionTransformer>(options);
}

}  // namespace tandem::models
