#pragma once

#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem::nn {

/// Tensors by name, in the order of the module or file that they are of.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

}  // namespace tandem::nn
