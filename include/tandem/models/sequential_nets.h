#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tandem/models/net.h"

/// \file
/// Small networks for images, whose parameters are named as in PyTorch's Sequential: 0.weight, 0.bias, 2.weight, …
namespace tandem::models {

/// What the images and the scores of a network are.
struct ImageShape {
  std::int64_t channels = 1;  ///< 3 of coloured ones
  std::int64_t size = 28;     ///< of each side
  std::int64_t classes = 10;  ///< scores of an image
};

/// Linear layers of these widths with ReLU between them, freshly initialised: input [B, channels, size, size], scores
/// [B, classes].
std::shared_ptr<Net> mlp(const std::vector<std::int64_t>& hidden = {512, 512}, const ImageShape& shape = {});

/// The same for samples of `inputs` numbers each, in any shape: input [B, …], scores [B, outputs].
std::shared_ptr<Net> mlp(const std::vector<std::int64_t>& hidden, std::int64_t inputs, std::int64_t outputs);

/// Two convolutions of 3 x 3, pooling and two linear layers, freshly initialised; it lies in memory with the channels
/// last. Input and scores as mlp's. Throws ConfigError for images smaller than 6 x 6.
std::shared_ptr<Net> cnn(const ImageShape& shape = {});

}  // namespace tandem::models
