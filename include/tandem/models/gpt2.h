#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tandem/models/net.h"

namespace torch::nn {
class EmbeddingImpl;
class LayerNormImpl;
}  // namespace torch::nn

namespace tandem::models {

/// Sizes of a GPT-2. The defaults are those of the small one.
struct Gpt2Options {
  std::int64_t vocabulary = 50257;  ///< tokens that there are
  std::int64_t positions = 1024;    ///< most tokens that it sees
  std::int64_t layers = 12;         ///< blocks of attention and mlp
  std::int64_t width = 768;         ///< a multiple of heads
  std::int64_t heads = 12;          ///< of a layer's attention
  double dropout = 0.1;             ///< of the embeddings, the attention's weights, and what each half of a layer adds
  bool checkpoint = false;          ///< layers are computed again in backward passes: see nn::checkpoint
};

/// GPT-2 as transformers' GPT2LMHeadModel: names (`transformer.h.0.attn.c_attn.weight`), layouts (a layer's weights are
/// [in, out]), numbers, and the distributions of its initialisation. 124,439,808 parameters by default.
///
/// Input int64 [B, T] with T at most `positions`, scores [B * T, vocabulary]. Scores are made with the embedding's
/// weight, `transformer.wte.weight`, which the model has under that one name, as Hugging Face's files do.
class Gpt2 : public Net {
 public:
  /// Freshly initialised, by this thread's default generator. Throws ConfigError for sizes that do not go together.
  explicit Gpt2(const Gpt2Options& options = {});

  /// Throws DataError for more tokens than `positions`.
  at::Tensor forward(const at::Tensor& tokens) override;

  /// The embedding.
  std::string head() const override { return "transformer.wte"; }

  /// Files have names with or without "transformer.", the embedding as "lm_head.weight" too, and masks, which are none
  /// of its weights.
  std::string name_of_stored(const std::string& stored) const override;

 private:
  class Layer;

  const Gpt2Options options_;
  std::shared_ptr<torch::nn::EmbeddingImpl> wte_, wpe_;
  std::vector<std::shared_ptr<Layer>> layers_;
  std::shared_ptr<torch::nn::LayerNormImpl> ln_f_;
};

}  // namespace tandem::models
