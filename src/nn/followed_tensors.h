#pragma once

#include <cstddef>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/comm/communicator.h"

namespace tandem::comm {
class RankGroup;
}

namespace tandem::nn {

/// Tensors of a model that become one rank's at the end of each reduction: its buffers, and weights that a forward pass
/// writes to.
///
/// A buffer that a graph has saved must not change before that graph's backward pass, so it is left alone by a rank as
/// long as more refers to it than did when it was watched, and follows with a later reduction, or when the model's
/// parameters are updated: what refers to it then is no graph that can still be used, and does not count from then on.
class FollowedTensors {
 public:
  /// Watches these from now on. `in_any_case`: weights, which are written to whoever refers to them.
  void watch(std::vector<at::Tensor> buffers, std::vector<at::Tensor> in_any_case);

  /// Gives all ranks rank `root`'s, but for those that have to wait on a rank. Collective.
  void follow(comm::Communicator& communicator, comm::RankGroup& group, int root);

  /// Whether the last `follow` left any as they were on some rank. The same on all ranks.
  bool left_any() const { return left_any_; }

  /// What refers to them now need not be waited for.
  void forget_references();

 private:
  struct Followed {
    at::Tensor tensor;
    bool in_any_case;
    std::size_t tensor_references, storage_references;  // that are no graph's
  };

  bool waits(Followed& followed);
  std::vector<bool> waiting(bool is_root);
  void follow_in_shared_memory(comm::Communicator& communicator, comm::RankGroup& group, int root);
  void follow_by_broadcast(comm::Communicator& communicator, comm::RankGroup& group, int root);

  std::vector<Followed> all_;
  bool left_any_ = false;
};

}  // namespace tandem::nn
