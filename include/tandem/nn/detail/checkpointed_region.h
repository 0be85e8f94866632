#pragma once

#include <functional>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem::nn::detail {

class RecomputedRegion;

/// The part of a forward pass that nn::checkpoint makes, while it is computed: what its graph saves on this thread is
/// computed again when it is wanted.
class CheckpointedRegion {
 public:
  /// `again` computes the region with these tensors for its `inputs`.
  CheckpointedRegion(const std::vector<at::Tensor>& inputs, std::function<void(const std::vector<at::Tensor>&)> again);
  ~CheckpointedRegion();
  CheckpointedRegion(const CheckpointedRegion&) = delete;
  CheckpointedRegion& operator=(const CheckpointedRegion&) = delete;

  /// The region is computed, with these results.
  void end(const std::vector<at::Tensor>& outputs);

  /// Stands for an input that is kept elsewhere.
  static const at::Tensor& placeholder();

 private:
  class Scopes;
  std::shared_ptr<RecomputedRegion> region_;
  std::unique_ptr<Scopes> scopes_;
};

}  // namespace tandem::nn::detail
