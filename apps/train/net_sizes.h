#pragma once

#include <cstdint>
#include <optional>

#include "options.h"
#include "tandem/models/sequential_nets.h"

namespace train {

/// How large the network that `options` ask for is, worked out without making it. Of activations, what is alive at a
/// time on one rank; the cnn's are measured on MNIST, and go by the area of its images.
struct NetSizes {
  std::int64_t parameters = 0;
  double training_bytes = 0;    ///< of activations and their gradients, in float32, a sample of the batch
  double evaluation_bytes = 0;  ///< of activations, of a batch of the test set
  std::int64_t judged = 0;      ///< samples of that batch
  double data_bytes = 0;        ///< of the data set, which all ranks share
};

/// Tokens of a batch that a language model is judged by, so that its scores take at most some hundred MB.
std::int64_t judged_tokens(std::int64_t vocabulary);

/// `images`: what networks for images are given; those of MNIST are in memory, others are read each time.
NetSizes sizes_of(const Options& options, const std::optional<tandem::models::ImageShape>& images = {});

}  // namespace train
