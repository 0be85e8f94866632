// Gradients of exact mode: those of the logical shards that a rank computes one after the other, and their sum over all
// shards, which takes one order on any number of ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/rank_group.h"
#include "comm/tree_sum.h"
#include "nn/reducer_group.h"
#include "tandem/comm/communicator.h"

namespace tandem::nn {

/// Adds up the gradients of V logical shards by one binary tree: shard i and i + V/2, then i and i + V/4, and so on.
/// Rank r of R computes shard s R + r as its sub-step s, so the upper levels of the tree lie within a rank and the
/// lower ones between ranks, and every R gives the same bits. A shard without a gradient is an empty leaf: what it is
/// added to stays as it is.
///
/// The passes of one shard in one window add up in a gradient of its own. When the window closes, the sum over the
/// shards, times a factor, is added once to what the parameter's gradient held before the window. In between a
/// parameter's gradient is that of the shard that computes, what it held before, or none where it has its place in the
/// tree: that is given to it as soon as it comes where shards before have come once, while it is in the cache.
class ExactGradients {
 public:
  /// Of all models of `models`, which outlives it as the others do. `each`: shards a rank has.
  ExactGradients(ReducerGroup& models, comm::Communicator& communicator, comm::RankGroup& group, int each);
  ~ExactGradients();
  ExactGradients(const ExactGradients&) = delete;
  ExactGradients& operator=(const ExactGradients&) = delete;

  /// Forgets what shards have computed. What parameters hold now is what the window's sum is added to.
  void begin_window();

  /// Shard `sub_step` of the rank computes from here on, in the `whole` case its last micro-batch of the window.
  /// `factor`: what its passes of the window so far are multiplied by, because the window ends early. Throws
  /// ConfigError when the program has written to the gradients of the shard before.
  void begin_micro_batch(int sub_step, bool whole, double factor);

  /// Before a backward pass of the shard; `factor` is that of `reduce` where it is known already. Throws ConfigError
  /// when the program has written to the shard's gradients since its last one.
  void before_pass(std::optional<double> factor);

  /// After it.
  void after_pass();

  /// Gives the parameters the sum over all shards, times `factor`, when the last shard of this rank has made a pass;
  /// again after each further pass. Collective.
  void reduce(double factor);

  /// Takes part in `reduce` of other ranks when this rank's body has ended: with what its window has added so far.
  /// Collective.
  void answer(double factor);

  /// When the window has closed: lets go of what is not needed any more.
  void end_window() noexcept;

 private:
  struct Slot {
    ModelReducer* model = nullptr;
    std::size_t index = 0;  // in the model
    std::string name;
    at::Tensor parameter;
    at::Tensor before;                  // what the gradient held before the window
    std::vector<at::Tensor> of_shards;  // of micro-batches before this one, by sub-step
    std::vector<at::Tensor> nodes;      // of the tree: see add_leaf
    at::Tensor leaf;                    // of the shard that computes
    at::Tensor shown;                   // what the parameter's gradient was made last
    std::uint32_t shown_version = 0;
    int arrivals = 0, most_arrivals = 0;  // in this micro-batch; in one of a shard before it
    bool in_tree = false;                 // the shard's gradient has its place in the tree already
    at::Tensor sum;                       // of all shards of the rank then, if it was the last
    bool is_scaled = false;               // that is times the factor

    at::Tensor& of_shard(int sub_step) { return of_shards[static_cast<std::size_t>(sub_step)]; }
    void show(const at::Tensor& gradient);
    bool is_as_shown() const;
    bool is_dropped() const;
  };

  void arrived(const at::Tensor& parameter);
  void keep_shard();
  void take_gradient(Slot& slot);
  at::Tensor add_leaf(std::vector<at::Tensor>& nodes, int shard, at::Tensor gradient, bool keeps_nodes) const;
  at::Tensor sum_of_rank(Slot& slot, int first, const at::Tensor& gradient) const;
  void scale(Slot& slot) const;
  std::vector<at::Tensor> sum_over_ranks(std::vector<at::Tensor> terms, double factor);
  std::vector<comm::CommonSum> common_sums(const std::vector<bool>& dense) const;

  ReducerGroup& models_;
  comm::Communicator& communicator_;
  comm::RankGroup& group_;
  const int each_;
  std::vector<Slot> slots_;                              // each parameter once
  std::unordered_map<const void*, std::size_t> places_;  // of a parameter in them
  int sub_step_ = -1;                                    // -1: no shard has computed in this window
  bool whole_ = false;                                   // its gradient is, after this micro-batch
  bool has_passed_ = false;                              // it has, in this micro-batch
  std::optional<double> factor_;                         // of `reduce`, where a pass knows it
  int skipped_ = 0;                                      // the last shard that made none when it should have, from 1
};

}  // namespace tandem::nn
