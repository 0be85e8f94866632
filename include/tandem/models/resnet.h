#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "tandem/models/net.h"

namespace torch::nn {
class BatchNorm2dImpl;
class Conv2dImpl;
class LinearImpl;
}  // namespace torch::nn

/// \file
/// Residual networks as torchvision's: names, numbers and initialisation (to the bit, with the same seed).
namespace tandem::models {

/// What the images and the scores of a ResNet are.
struct ResNetOptions {
  std::int64_t classes = 1000;  ///< scores of an image
  std::int64_t channels = 3;    ///< of the images
  bool checkpoint = false;      ///< blocks are computed again in backward passes: see nn::checkpoint
};

/// Of which blocks a ResNet is made.
struct ResNetLayout {
  std::array<std::int64_t, 4> blocks;  ///< in layer1 to layer4
  bool bottleneck = false;             ///< of three convolutions, not two
};

/// Input float [B, channels, H, W] of any size from 1 x 1 (it is divided by 32), scores [B, classes]. Convolutions lie
/// in memory with the channels last, and images are laid out so.
class ResNet : public Net {
 public:
  /// Freshly initialised, by this thread's default generator.
  ResNet(const ResNetLayout& layout, const ResNetOptions& options);

  at::Tensor forward(const at::Tensor& images) override;

 private:
  class Block;
  void add_layer(const std::string& name, std::int64_t blocks, std::int64_t planes, std::int64_t stride,
                 bool bottleneck);

  bool checkpoint_;
  std::int64_t width_ = 64;  // of what the next block gets
  std::shared_ptr<torch::nn::Conv2dImpl> conv1_;
  std::shared_ptr<torch::nn::BatchNorm2dImpl> bn1_;
  std::vector<std::shared_ptr<Block>> blocks_;
  std::shared_ptr<torch::nn::LinearImpl> fc_;
};

/// 11,689,512 parameters with 1000 classes.
std::shared_ptr<ResNet> resnet18(const ResNetOptions& options = {});
/// 21,797,672 parameters with 1000 classes.
std::shared_ptr<ResNet> resnet34(const ResNetOptions& options = {});
/// 25,557,032 parameters with 1000 classes. Blocks have their stride at the second convolution.
std::shared_ptr<ResNet> resnet50(const ResNetOptions& options = {});

}  // namespace tandem::models
