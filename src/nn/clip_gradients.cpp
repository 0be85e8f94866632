#include "nn/clip_gradients.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

namespace tandem::nn {

at::Tensor clip_grad_norm_(const std::vector<at::Tensor>& gradients, double max_norm, double norm_type) {
  const at::NoGradGuard no_grad;
  at::Tensor norm = at::stack(at::_foreach_norm(gradients, norm_type)).norm(norm_type);
  constexpr double kKeepsFromDividingByZero = 1e-6;  // PyTorch's
  if (norm.is_cpu()) {
    // The norm is there already, and gradients that need no clipping are not touched. NaN makes all of them NaN.
    const double factor = max_norm / (norm.item<double>() + kKeepsFromDividingByZero);
    if (!(factor >= 1.0)) at::_foreach_mul_(gradients, factor);
  } else {
    at::_foreach_mul_(gradients, (max_norm / (norm + kKeepsFromDividingByZero)).clamp_max(1.0));
  }
  return norm;
}

}  // namespace tandem::nn
