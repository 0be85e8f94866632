#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tandem/models/net.h"

namespace torch::nn {
class Conv2dImpl;
class LayerNormImpl;
class LinearImpl;
}  // namespace torch::nn

/// \file
/// Vision transformers as torchvision's: names, numbers and initialisation (to the bit, with the same seed).
namespace tandem::models {

/// Sizes of a vision transformer. The defaults are ViT-B/16's.
struct VisionTransformerOptions {
  std::int64_t classes = 1000;     ///< scores of a sample
  std::int64_t channels = 3;       ///< of the images
  std::int64_t image_size = 224;   ///< of their sides, a multiple of patch_size
  std::int64_t patch_size = 16;    ///< of the sides of what is one token
  std::int64_t layers = 12;        ///< blocks of attention and mlp
  std::int64_t width = 768;        ///< a multiple of heads
  std::int64_t heads = 12;         ///< of a layer's attention
  std::int64_t hidden = 3072;      ///< width of a layer's second half
  double dropout = 0.0;            ///< of the embeddings, and of what each half of a layer adds
  double attention_dropout = 0.0;  ///< of the attention's weights
  bool checkpoint = false;         ///< layers are computed again in backward passes: see nn::checkpoint
};

/// Input float [B, channels, image_size, image_size], scores [B, classes].
class VisionTransformer : public Net {
 public:
  /// Freshly initialised, by this thread's default generator. Throws ConfigError for sizes that do not go together.
  explicit VisionTransformer(const VisionTransformerOptions& options);

  /// Throws DataError for images of another size.
  at::Tensor forward(const at::Tensor& images) override;

 private:
  class Layer;

  const VisionTransformerOptions options_;
  at::Tensor class_token_, positions_;
  std::shared_ptr<torch::nn::Conv2dImpl> patches_;
  std::vector<std::shared_ptr<Layer>> layers_;
  std::shared_ptr<torch::nn::LayerNormImpl> norm_;
  std::shared_ptr<torch::nn::LinearImpl> head_;
};

/// ViT-B/16, 86,567,656 parameters with 1000 classes; `options` may change what the images and classes are.
std::shared_ptr<VisionTransformer> vit_b_16(const VisionTransformerOptions& options = {});

}  // namespace tandem::models
