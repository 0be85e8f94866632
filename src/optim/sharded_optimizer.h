#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

#include "tandem/comm/communicator.h"

namespace tandem::nn {
class LentStorage;
class ModelReducer;
class ReducerGroup;
}  // namespace tandem::nn

namespace tandem::comm {
class RankGroup;
}

namespace tandem::optim {

/// Divides the update of an optimizer over the ranks: each updates its own parameters, and keeps the state of these
/// only (Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020, stage 1).
/// Results are those of the undivided step, to the bit.
///
/// Before an update the ranks find out what is exact, the same on all ranks:
///
/// - A class of optimizer that may need all parameters at once (all but LibTorch's SGD, Adam, AdamW, RMSprop and
///   Adagrad), a parameter of no prepared model, and one that is listed twice: not divided.
/// - Nor is a step on gradients that a rank's passes have added to since the last reduction (no_sync), that it has
///   written to (on CPU ranks) or with options that are not all ranks', and from then on none: each rank has gradients,
///   weights and state of its own.
/// - On CPU ranks each storage of weights that is lent (nn::SharedWeights) has a rank that updates the parameters on
/// it.
///   One that anybody has written to, by whatever way, or could have, each rank updates by itself from then on, as
///   without division; so too when it was a parameter's state that was written to.
/// - On GPUs: divided while all ranks' weights are equal, which is looked at after operators have written to them. What
///   is written by ways that LibTorch does not count (Tensor::data(), pointers) has to be the same on all ranks.
///
/// Where ranks do not have one memory, each gets the new weights from those who have made them. Between steps the
/// optimizer's state on each rank is complete, so that it can be saved as ever: for parameters of others it refers to
/// their memory, on CPU ranks by copy-on-write.
class ShardedOptimizer {
 public:
  /// Refers to all of them. `models` are those that were prepared. `warn` hears once when ranks' weights have become
  /// different, or are about to.
  ShardedOptimizer(torch::optim::Optimizer& inner, comm::Communicator& communicator, comm::RankGroup& group,
                   nn::ReducerGroup& models, std::function<void(const std::string&)> warn = {});
  ~ShardedOptimizer();

  /// One update of the inner optimizer: `update` is called with its groups cut down to what this rank is to update, and
  /// must update these. Collective, unless `divided` has become false. Throws ConfigError on all ranks when their
  /// optimizers list other parameters.
  void step(const std::function<void()>& update);

  /// Ends the division until `resume`: every rank gets the whole state, and steps by itself. The models' weights are
  /// separated before (nn::SharedWeights::separate). Collective.
  void pause();

  /// The next step begins anew to find out what is exact. To be called on all ranks.
  void resume();

  /// Has every rank load the state that it needs: calls `load` with what tells whether a parameter's state is wanted
  /// here; that of the others is referred to. Collective.
  void load(const std::function<void(const std::function<bool(const at::Tensor&)>& wanted)>& load);

  /// Whether the last step was divided over the ranks.
  bool divided() const { return mode_ == Mode::divided; }

 private:
  enum class Mode : std::uint8_t { unknown, divided, paused, whole };
  struct UpdatePart;  // a parameter and its state
  struct Found;
  class OwnGroups;
  static constexpr int kEachRank = -1, kNobodyYet = -2;

  // ---- who updates what
  bool classes_may_be_divided() const;
  void list_parts();
  void decide();
  void settle();
  bool storages_overlap() const;
  void give_up_touched();
  void assign();
  void list_own();
  void make_whole();
  bool touched(const UpdatePart& part) const;
  bool lent() const { return communicator_.shares_memory(); }
  void look_at_gradients();
  bool options_differ();
  bool gradients_differ();
  void warn_of_weights(const std::vector<std::size_t>& parts);
  std::optional<std::pair<int, std::size_t>> first_difference(
      const std::function<bool(const ShardedOptimizer& main, std::size_t part)>& differs) const;
  void warn(const std::string& what);

  // ---- an update
  std::vector<nn::LentStorage*> storages_of(const std::function<bool(const UpdatePart&)>& wanted) const;
  void update_own(const std::function<void()>& update);
  void give_weights();

  // ---- state
  void lend_own_state();
  void refer_to_state();
  void refer(UpdatePart& part, Found& found);
  void own_state(UpdatePart& part);

  bool any_rank(bool mine) const;
  bool has_local_gradients() const;

  torch::optim::Optimizer& inner_;
  comm::Communicator& communicator_;
  comm::RankGroup& group_;
  nn::ReducerGroup& models_;
  std::function<void(const std::string&)> warn_;
  Mode mode_ = Mode::unknown;
  std::vector<UpdatePart> parts_;               // of all groups, in their order
  std::vector<std::uint8_t> gradient_is_own_;   // of parts_, whether it is memory of this rank alone
  std::vector<std::vector<at::Tensor>> own_;    // what this rank updates, by group
  std::vector<nn::ModelReducer*> with_models_;  // that the parameters belong to
  bool all_in_models_ = false;                  // each parameter belongs to one, and is listed once
  bool has_new_parts_ = false;                  // since `decide` has looked
};

}  // namespace tandem::optim
