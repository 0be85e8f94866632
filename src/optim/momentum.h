#pragma once

#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// Sets SGD's and RMSprop's momentum, or Adam's and AdamW's first beta. Returns false for options that have neither.
bool set_momentum(torch::optim::OptimizerOptions& options, double momentum);

}  // namespace tandem::optim
