#pragma once

#include <string>

#include "inputs.h"
#include "options.h"

namespace train {

/// Finds what --batch-size auto stands for, in a launch of its own that trains networks of the same kind, and puts it
/// into `options`, their recorded flags included. Returns a sentence about it, for people. Of `inputs` the task and the
/// weights are there. Throws tandem::ConfigError when one sample does not fit.
std::string find_batch_size(Options& options, const Inputs& inputs);

}  // namespace train
