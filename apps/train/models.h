#pragma once

#include <torch/nn/modules/container/sequential.h>

#include "options.h"

namespace train {

/// The network that `options` ask for, freshly initialised: input [B, 1, 28, 28], output [B, 10]. Parameters are named
/// as in PyTorch: 0.weight, 0.bias, 2.weight, …
torch::nn::Sequential make_model(const Options& options);

}  // namespace train
