#include "nn/finite_check.h"

#include <limits>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

namespace tandem::nn {
namespace {

// True, 0-dim, on the gradients' device, when one of them holds an infinite or NaN value. The largest magnitude of a
// tensor is NaN if any value is.
at::Tensor any_is_not_finite(const std::vector<at::Tensor>& gradients) {
  std::vector<at::Tensor> largest;
  for (const at::Tensor& norm : at::_foreach_norm(gradients, std::numeric_limits<double>::infinity()))
    largest.push_back(norm.to(at::kFloat));
  return at::stack(largest).isfinite().all().logical_not();
}

}  // namespace

at::Tensor values_of(const at::Tensor& gradient) {
  return gradient.is_sparse() ? gradient.coalesce().values() : gradient.detach();
}

void FiniteCheck::start(const std::vector<at::Tensor>& gradients, std::uint64_t pass) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> floats;
  for (const at::Tensor& gradient : gradients) {
    const at::Tensor values = values_of(gradient);
    if (values.numel() > 0) floats.push_back(values);
  }
  if (floats.empty()) return;
  scalars_.add({any_is_not_finite(floats)}, [this, pass](const comm::DeferredScalars::Arrived& arrived) {
    if (arrived.of(0, 0) != 0) found_.push_back(pass);
  });
}

std::optional<std::uint64_t> FiniteCheck::first_found(bool wait) {
  if (wait)
    scalars_.deliver_all();
  else
    scalars_.deliver();
  if (found_.empty()) return std::nullopt;
  const std::uint64_t pass = found_.front();
  found_.pop_front();
  return pass;
}

}  // namespace tandem::nn
