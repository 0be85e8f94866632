#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/comm/deferred_scalars.h"

namespace tandem::nn {

/// The numbers of a gradient, dense or sparse.
at::Tensor values_of(const at::Tensor& gradient);

/// Looks for infinite and NaN values in the gradients of passes, on their device, without waiting for it: the host
/// learns of them when a result has arrived. Belongs to one thread.
class FiniteCheck {
 public:
  /// Looks at the gradients of pass `pass`, after what the current stream has to do.
  void start(const std::vector<at::Tensor>& gradients, std::uint64_t pass);

  /// The first pass that has been found to have such values, of those whose result has arrived; with `wait`, of all.
  std::optional<std::uint64_t> first_found(bool wait);

 private:
  comm::DeferredScalars scalars_;
  std::deque<std::uint64_t> found_;  // passes, in order
};

}  // namespace tandem::nn
