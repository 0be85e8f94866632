#pragma once

#include <memory>

#include "net.h"
#include "options.h"

namespace train {

/// The mlp or cnn that `options` ask for, freshly initialised: input [B, 1, 28, 28], scores [B, 10]. Parameters are
/// named as in PyTorch's Sequential: 0.weight, 0.bias, 2.weight, …
std::shared_ptr<Net> make_image_net(const Options& options);

}  // namespace train
