#pragma once

#include <cstdint>
#include <memory>

#include "net.h"
#include "options.h"
#include "tandem/models/sequential_nets.h"

namespace train {

/// The network for images that `options` ask for, freshly initialised: input [B, channels, size, size], scores
/// [B, classes]; without a shape for MNIST's. Throws tandem::ConfigError where it cannot have such images.
std::shared_ptr<Net> make_image_net(const Options& options, const tandem::models::ImageShape& shape = {});

/// The network that `options` ask for, for samples of these sizes, freshly initialised: input [B, sizes…], scores
/// [B, outputs]. Networks for images take [channels, size, size]. Throws tandem::ConfigError where it cannot have such
/// samples.
std::shared_ptr<Net> make_table_net(const Options& options, at::IntArrayRef sizes, std::int64_t outputs);

/// The language model that `options` ask for, freshly initialised: input [B, T] with T at most the block size, scores
/// [B * T, vocabulary].
std::shared_ptr<Net> make_text_net(const Options& options);

}  // namespace train
