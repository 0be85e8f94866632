#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem::nn {

/// Scales `gradients` so that their `norm_type`-norm, of all as one vector, is at most `max_norm`, and returns the norm
/// before: 0-dim, on their device, which all share. Waits for no device: on a GPU neither the norm nor the factor comes
/// to the host. As PyTorch's clip_grad_norm_ with foreach=True, also where the norm is infinite or NaN. `gradients` is
/// not empty.
at::Tensor clip_grad_norm_(const std::vector<at::Tensor>& gradients, double max_norm, double norm_type);

}  // namespace tandem::nn
