#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem::nn {

/// The tensors in lists, of which none has two tensors with memory in common: what threads do to a list together they
/// then do once to each element. Tensors that lie wholly within another one are left out.
std::vector<std::vector<at::Tensor>> without_overlaps(const std::vector<at::Tensor>& tensors);

}  // namespace tandem::nn
