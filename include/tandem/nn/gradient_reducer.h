#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/comm/communicator.h"
#include "tandem/core/cancel_token.h"

namespace tandem::nn {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Keeps the replicas of one model alike: equal at the start, gradients averaged over the ranks, buffers rank 0's.
///
/// A hook on each parameter notes that a backward pass reached it, so that only what was reached on some rank since the
/// last reduction is reduced; a parameter reached on other ranks only counts as zero here.
class GradientReducer {
 public:
  /// Checks that all ranks have the same parameters and buffers, and gives all of them rank 0's values. Collective.
  /// Throws ConfigError naming the first that differs in number, name, shape or type. `communicator` and `token`
  /// outlive the reducer.
  GradientReducer(NamedTensors parameters, NamedTensors buffers, comm::Communicator& communicator,
                  comm::RankGroup& group);
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Replaces the gradients accumulated since the last call by `scale` times their sum (or mean) over the ranks, and
  /// the buffers by rank `main`'s. Collective.
  void reduce(comm::ReduceOp op, double scale, int main = 0);

  /// Drops the gradients.
  void clear_gradients();

  /// Overwrites parameters and buffers with rank `root`'s. Collective.
  void broadcast(int root);

  /// Multiplies this rank's gradients that were accumulated since the last reduction by `factor`.
  void scale_unreduced(double factor);

  const NamedTensors& parameters() const { return parameters_; }

 private:
  struct Reached;  // which parameters a backward pass has reached; the hooks share it

  void check_same_on_all_ranks(comm::RankGroup& group) const;
  std::vector<at::Tensor> gradients_reached_anywhere();

  NamedTensors parameters_;
  NamedTensors buffers_;
  std::vector<at::Tensor> buffer_list_;
  comm::Communicator& communicator_;
  std::shared_ptr<Reached> reached_;
  std::vector<std::pair<at::Tensor, unsigned>> hooks_;
};

}  // namespace tandem::nn
