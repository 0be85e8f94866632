#pragma once

#include <cstdint>

#include "options.h"

namespace train {

/// How large the network that `options` ask for is, worked out without making it. Of activations, what is alive at a
/// time on one rank; the figures for the cnn, whose sizes never change, are measured.
struct NetSizes {
  std::int64_t parameters = 0;
  double training_bytes = 0;    ///< of activations and their gradients, in float32, a sample of the batch
  double evaluation_bytes = 0;  ///< of activations, of a batch of the test set
  double data_bytes = 0;        ///< of the data set, which all ranks share
};

NetSizes sizes_of(const Options& options);

}  // namespace train
