#include "nn/finite_check.h"

#include <limits>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

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
  const at::Tensor found = any_is_not_finite(floats);
  Pending& next = pending_.emplace_back();
  next.pass = pass;
  if (found.is_cpu()) {
    next.found = found;
    return;
  }
  next.found = at::empty({}, at::dtype(at::kBool).pinned_memory(true));
  next.found.copy_(found, /*non_blocking=*/true);
  const c10::impl::VirtualGuardImpl guard(found.device().type());
  next.done.emplace(found.device().type());
  next.done->record(guard.getStream(found.device()));
}

std::optional<std::uint64_t> FiniteCheck::first_found(bool wait) {
  while (!pending_.empty()) {
    Pending& oldest = pending_.front();
    if (oldest.done && wait) oldest.done->synchronize();
    if (oldest.done && !wait && !oldest.done->query()) return std::nullopt;
    const bool found = oldest.found.item<bool>();
    const std::uint64_t pass = oldest.pass;
    pending_.pop_front();
    if (found) return pass;
  }
  return std::nullopt;
}

}  // namespace tandem::nn
