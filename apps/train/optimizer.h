#pragma once

#include <memory>

#include "net.h"
#include "options.h"

namespace train {

/// The optimizer that --optimizer and its flags ask for, of all parameters of `net`.
std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Options& options, const Net& net);

}  // namespace train
