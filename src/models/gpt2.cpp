#include "tandem/models/gpt2.h"

#include <cmath>

#include <torch/nn/functional/linear.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>

#include "models/attention.h"
#include "models/call_layer.h"
#include "tandem/core/error.h"

namespace tandem::models {
namespace {

using torch::nn::Embedding;
using torch::nn::LayerNorm;

constexpr double kStd = 0.02;  // of the initial weights

LayerNorm gpt2_norm(std::int64_t width) { return LayerNorm(torch::nn::LayerNormOptions({width})); }

// A linear layer whose weight is [in, out], as OpenAI had it.
class Conv1D : public torch::nn::Module {
 public:
  Conv1D(std::int64_t in, std::int64_t out, double std)
      : weight_(register_parameter("weight", at::empty({in, out}))),
        bias_(register_parameter("bias", at::zeros({out}))) {
    torch::nn::init::normal_(weight_, 0.0, std);
  }

  at::Tensor forward(const at::Tensor& x) const { return product(x, weight_, bias_); }

  // The result in three equal parts.
  std::vector<at::Tensor> parts(const at::Tensor& x) const {
    const auto each = [&] {
      const auto weights = weight_.chunk(3, 1), biases = bias_.chunk(3);
      return std::vector<at::Tensor>{product(x, weights[0], biases[0]), product(x, weights[1], biases[1]),
                                     product(x, weights[2], biases[2])};
    };
    return project(
        x, [&] { return forward(x); }, each);
  }

 private:
  static at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    auto sizes = x.sizes().vec();
    sizes.back() = weight.size(1);
    return at::addmm(bias, x.reshape({-1, weight.size(0)}), weight).view(sizes);
  }

  at::Tensor weight_, bias_;
};

}  // namespace

// x += attention(norm(x)), then x += mlp(norm(x)).
class Gpt2::Layer : public torch::nn::Module {
 public:
  explicit Layer(const Gpt2Options& options) : options_(options) {
    const std::int64_t width = options.width;
    const double residual_std = kStd / std::sqrt(2.0 * static_cast<double>(options.layers));
    const auto attention = std::make_shared<torch::nn::Module>(), mlp = std::make_shared<torch::nn::Module>();
    ln_1_ = register_module("ln_1", gpt2_norm(width));
    register_module("attn", attention);
    c_attn_ = attention->register_module("c_attn", std::make_shared<Conv1D>(width, 3 * width, kStd));
    c_proj_ = attention->register_module("c_proj", std::make_shared<Conv1D>(width, width, residual_std));
    ln_2_ = register_module("ln_2", gpt2_norm(width));
    register_module("mlp", mlp);
    c_fc_ = mlp->register_module("c_fc", std::make_shared<Conv1D>(width, 4 * width, kStd));
    out_ = mlp->register_module("c_proj", std::make_shared<Conv1D>(4 * width, width, residual_std));
  }

  // [B, T, width] to the same.
  at::Tensor forward(const at::Tensor& x) {
    const auto parts = c_attn_->parts(ln_1_(x));
    const double dropout = is_training() ? options_.dropout : 0.0;
    const at::Tensor seen =
        attend(parts[0], parts[1], parts[2], {.heads = options_.heads, .dropout = dropout, .causal = true});
    const at::Tensor attended = x + drop(c_proj_->forward(seen));
    return attended + drop(out_->forward(at::gelu(c_fc_->forward(ln_2_(attended)), "tanh")));
  }

 private:
  at::Tensor drop(const at::Tensor& x) const { return at::dropout(x, options_.dropout, is_training()); }

  const Gpt2Options& options_;  // the model's
  LayerNorm ln_1_{nullptr}, ln_2_{nullptr};
  std::shared_ptr<Conv1D> c_attn_, c_proj_, c_fc_, out_;
};

Gpt2::Gpt2(const Gpt2Options& options) : options_(options) {
  if (options.width % options.heads != 0)
    throw ConfigError("a width of " + std::to_string(options.width) + " does not divide by " +
                      std::to_string(options.heads) + " heads; use a multiple of it");
  const auto transformer = register_module("transformer", std::make_shared<torch::nn::Module>());
  wte_ = transformer->register_module("wte", Embedding(options.vocabulary, options.width).ptr());
  wpe_ = transformer->register_module("wpe", Embedding(options.positions, options.width).ptr());
  for (const auto& embedding : {wte_, wpe_}) torch::nn::init::normal_(embedding->weight, 0.0, kStd);
  const auto layers = transformer->register_module("h", std::make_shared<torch::nn::Module>());
  for (std::int64_t i = 0; i < options.layers; ++i) {
    layers_.push_back(std::make_shared<Layer>(options_));
    layers->register_module(std::to_string(i), layers_.back());
  }
  ln_f_ = transformer->register_module("ln_f", gpt2_norm(options.width).ptr());
}

at::Tensor Gpt2::forward(const at::Tensor& tokens) {
  if (tokens.dim() != 2 || tokens.size(1) > options_.positions)
    throw DataError("this GPT-2 takes tokens [B, T] with T at most " + std::to_string(options_.positions) + "; got " +
                    c10::str(tokens.sizes()));
  const at::Tensor positions = wpe_->weight.narrow(0, 0, tokens.size(1));
  at::Tensor x = at::dropout(wte_->forward(tokens) + positions, options_.dropout, is_training());
  for (const auto& layer : layers_) x = call_layer(layer, x, options_.checkpoint);
  return torch::nn::functional::linear(ln_f_->forward(x), wte_->weight).flatten(0, 1);
}

std::string Gpt2::name_of_stored(const std::string& stored) const {
  if (stored.ends_with(".attn.bias") || stored.ends_with(".attn.masked_bias")) return {};
  if (stored == "lm_head.weight") return "transformer.wte.weight";
  return stored.starts_with("transformer.") ? stored : "transformer." + stored;
}

}  // namespace tandem::models
