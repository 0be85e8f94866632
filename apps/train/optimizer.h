#pragma once

#include <memory>
#include <string>
#include <vector>

#include "net.h"
#include "options.h"

namespace train {

/// What --optimizer stands for, and what its flags are where they are not given.
struct OptimizerDefaults {
  OptimizerKind kind;
  double lr, weight_decay;
};

/// The values of --optimizer.
std::vector<std::string> optimizer_names();

/// `name` is one of them.
OptimizerDefaults defaults_of_optimizer(const std::string& name);

/// The optimizer that --optimizer and its flags ask for, of all parameters of `net`.
std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Options& options, const Net& net);

}  // namespace train
