#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

#include "tandem/comm/communicator.h"
#include "tandem/nn/gradient_reducer.h"

namespace tandem::optim {

/// Divides the update of an optimizer over the ranks: each updates its own parameters, and keeps the state of these
/// only (Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020, stage 1).
/// Results are those of the undivided step, to the bit.
///
/// The first steps find out what is exact for this optimizer and its models, the same on all ranks:
///
/// - A class of optimizer that may need all parameters at once (all but LibTorch's SGD, Adam, AdamW, RMSprop and
///   Adagrad), a parameter of no prepared model, and weights that differ between the ranks: not divided.
/// - Nor is a step on gradients that a rank's passes have added to since the last reduction (no_sync), and from then on
///   none: each rank has gradients, weights and state of its own.
/// - CPU ranks whose weights nobody else has written to between one step and the next: divided, and from
///   then on all ranks have one copy of the weights (SharedWeights).
/// - Otherwise: divided, and after each update every rank gets the others' parameters.
///
/// Weights that others write to later are compared: where ranks then differ, the division ends. Once ranks share their
/// weights it is too late, because every rank's write was to the same memory: ConfigError.
///
/// On CPU ranks, between steps, the optimizer's state on each rank is complete, so that it can be saved as ever: for
/// parameters of others it refers to their memory.
class ShardedOptimizer {
 public:
  /// Whether ranks may share one copy of them.
  enum class Weights { own, shared };

  /// Refers to all of them. `models` are those that were prepared.
  ShardedOptimizer(torch::optim::Optimizer& inner, comm::Communicator& communicator, comm::RankGroup& group,
                   nn::GradientReducers& models, Weights weights);

  /// One update of the inner optimizer: `update` is called with its groups cut down to what this rank is to update, and
  /// must update these. Collective, unless `divided` has become false.
  void step(const std::function<void()>& update);

  /// Ends the division until `resume`: every rank gets the whole state and weights of its own, and steps by itself.
  /// Collective.
  void pause();

  /// The next step begins anew to find out what is exact. To be called on all ranks.
  void resume();

  /// Has every rank load the state that it needs: calls `load` with what tells whether a parameter's state is wanted
  /// here; that of the others is referred to. Collective.
  void load(const std::function<void(const std::function<bool(const at::Tensor&)>& wanted)>& load);

  /// Whether the last step was divided over the ranks.
  bool divided() const { return mode_ == Mode::divided; }

  /// Whether this rank updates `parameter`, as of the last step.
  bool owns(const at::Tensor& parameter) const;

 private:
  enum class Mode : std::uint8_t { unknown, divided, paused, whole };
  class OwnGroups;

  bool classes_may_be_divided() const;
  void partition();
  void find_models();
  void decide();
  void share_weights();
  void give_weights();
  void refer_to_state();
  void make_whole(Mode mode);
  bool any_rank(bool mine) const;
  bool has_local_gradients() const;
  int owner_of(const at::Tensor& parameter) const;

  torch::optim::Optimizer& inner_;
  comm::Communicator& communicator_;
  comm::RankGroup& group_;
  nn::GradientReducers& models_;
  Weights weights_;
  Mode mode_ = Mode::unknown;
  bool refers_ = false;                            // to the state of other ranks
  std::vector<at::Tensor> parameters_;             // of all groups, in their order
  std::vector<int> owners_;                        // of parameters_
  std::vector<std::vector<at::Tensor>> own_;       // by group
  std::vector<nn::GradientReducer*> with_models_;  // that the parameters belong to
  bool all_in_models_ = false;                     // each parameter belongs to one, and is listed once
  bool has_new_parts_ = false;                     // since `decide` has looked
};

}  // namespace tandem::optim
