// The reduction of one model's gradients. A gradient's way: model_reducer.cpp has the hooks that notice it,
// model_reducer_reduction.cpp its bucket's start, its reduction and its return to the parameter, reducer_group.cpp the
// turns of several models, and model_reducer_buckets.cpp the memory that it lies in. model_reducer_window.cpp is about
// factors of windows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include "nn/finite_check.h"
#include "nn/followed_tensors.h"
#include "nn/model_reducer_parts.h"
#include "nn/shared_weights.h"
#include "tandem/comm/communicator.h"
#include "tandem/nn/gradient_reducer.h"
#include "tandem/nn/gradient_reducer_options.h"
#include "tandem/nn/named_tensors.h"

namespace torch::optim {
class Optimizer;
}

namespace tandem::nn {

/// A reduced gradient that is one memory for all ranks.
struct SharedGradient {
  at::Tensor memory;   ///< the gradient, averaged
  at::Tensor squares;  ///< sums of squares of its blocks, float64 (see comm::reduce_with_squares); perhaps undefined
};

/// Keeps the replicas of one model alike: equal at the start, gradients averaged over the ranks, buffers rank 0's.
/// Buffers become rank 0's when a reduction ends; one that a graph which waits for its backward pass has saved follows
/// after the model's next update, or with a reduction after that pass. So do weights of embeddings with max_norm, which
/// a forward pass writes to.
///
/// A hook on each parameter notes that a backward pass has reached it. The first pass is reduced when it has ended.
/// From then on the parameters that passes reach lie in buckets, in the order in which their gradients came on rank 0,
/// and a bucket's reduction starts, within the pass, as soon as its last gradient is there and the buckets before it
/// have started. When the pass has ended the ranks tell each other what it has reached: buckets that have not started,
/// and gradients that nobody expected, follow. A parameter that a rank's pass has not reached counts there with the
/// gradient that it has, or as zero. One that no rank has reached since the last reduction keeps its gradient, or has
/// none. (After Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020,
/// without its walk of the graph.)
///
/// Sparse gradients are gathered. Gradients that are part of a graph (create_graph) are overwritten in place, and
/// remain part of it.
class ModelReducer final : public GradientReducer {
 public:
  /// Gives all ranks' modules, which have the same parameters and buffers (Accelerator::prepare looks), rank 0's
  /// values. Collective. `communicator`, `group` and `pass` outlive the reducer's work, which `leave_launch` ends.
  ModelReducer(std::shared_ptr<torch::nn::Module> module, comm::Communicator& communicator, comm::RankGroup& group,
               RankPass& pass, const GradientReducerOptions& options = {});
  ~ModelReducer() override;

  void set_communication_hook(CommunicationHook hook) override;
  bool has_communication_hook() const override { return static_cast<bool>(hook_); }
  std::vector<std::string> unused_parameters() const override;
  void note_call() override { called_ = true; }
  bool was_called() const { return called_; }  ///< whether the model ever was, as `prepare` returned it

  // ---- the model

  /// The module's parameters by their first names, each once.
  const NamedTensors& parameters() const { return parameters_; }
  const std::shared_ptr<torch::nn::Module>& module() const { return module_; }  ///< the replica of this rank
  SharedWeights& weights() { return weights_; }              ///< its parameters as memory that ranks may share
  const SharedWeights& weights() const { return weights_; }  ///< to look at

  /// The buffers that reductions make rank 0's.
  std::vector<at::Tensor> synchronized_buffers() const {
    return options_.broadcast_buffers ? buffers_ : std::vector<at::Tensor>();
  }

  /// The same and the weights that forward passes write to: what ranks' replicas have of rank 0's beside the updates.
  std::vector<at::Tensor> followed_tensors() const;

  /// Whether the parameter was the model's when it was prepared.
  bool has(const at::Tensor& parameter) const { return index_.contains(parameter.unsafeGetTensorImpl()); }

  /// Name of a parameter that the module has got since.
  std::optional<std::string> added_parameter() const;

  /// Takes over parameters and buffers that the module has got, or lost, since. Collective, like the constructor.
  void update();

  /// Overwrites parameters and buffers with rank `root`'s. Collective.
  void broadcast(int root);

  /// Averages over the ranks: parameters that require a gradient, and buffers of floating-point and complex types. The
  /// others become rank 0's. Buffers stay as they are when broadcast_buffers is off. Collective.
  void average_weights();

  /// Tells that `optimizer` has updated its parameters. Graphs through a model that has one of them are of no use now,
  /// so its buffers that had to wait for them become rank 0's. Collective.
  void updated_by(const torch::optim::Optimizer& optimizer);

  /// Ends the work for the launch: gradients and weights get memory of their own, and hooks are gone. The program may
  /// keep the model, and with it this object, for longer.
  void leave_launch();

  // ---- gradients

  /// Drops the gradients.
  void clear_gradients();

  /// Leaves of the gradients what no reduction has averaged: drops those, and subtracts those parts, that one has.
  void keep_unreduced();

  /// Whether passes of this rank have added to the gradient of `parameter`, which it still has, since the last
  /// reduction.
  bool has_local_gradient(const at::Tensor& parameter) const;

  /// Whether passes of this rank have added to any gradient since the last reduction.
  bool has_local_gradients() const { return adds_locally_; }

  /// Has reductions, from the next pass on, add up the squares of gradients too: SharedGradient::squares.
  void add_up_squares() { adds_up_squares_ = true; }

  /// The shared gradient of a parameter of this model; nothing once this rank has written to its gradient.
  std::optional<SharedGradient> shared_gradient(const at::Tensor& parameter) const;

  /// Tells that the memory of such a gradient was written to.
  void shared_gradient_written(const at::Tensor& parameter);

  /// Whether the gradient of a parameter of this model is the memory of all ranks: see shared_gradient.
  bool shares_gradient(const at::Tensor& parameter) const;

  /// Throws Error when gradients of a reduction were infinite or NaN, as far as that is known; with `wait`, of all
  /// reductions so far. See GradientReducerOptions::check_finite.
  void throw_if_not_finite(bool wait);

  // ---- the accumulation window

  /// Forgets which gradients came in the accumulation window so far, for `scale_window`.
  void begin_window();

  /// Multiplies by `factor` what backward passes of the window have added to this rank's gradients. What these held
  /// before the window stays. Throws ConfigError where the two can no longer be told apart, because the program has
  /// written to such a gradient between the window's passes.
  void scale_window(double factor);

  // ---- a pass whose gradients are reduced, in this order; see ReducerGroup, which calls them

  void watch_parameters();             ///< hooks on parameters that have none; before any other pass, too
  void check_not_interrupted() const;  ///< throws CollectiveError when the last pass ended after buckets had started
  void begin_pass();                   ///< forgets the last pass, and spares what the program still refers to
  bool start_complete_buckets();       ///< in their order; true when all have started
  void settle();                       ///< has the ranks tell each other what they have reached, and starts the rest
  void collect();                      ///< waits for the reductions, and gives the parameters their gradients back
  void reduce_rest(int main);          ///< gradients that no bucket expected, and the buffers of rank `main`
  void check_finite();                 ///< begins to look for infinite and NaN values
  void end_pass();                     ///< learns from it for the next one
  void forget_pass();                  ///< what a pass has reached that is reduced elsewhere
  void reduced_elsewhere(const std::vector<bool>& reached);  ///< the same, and which parameters some rank's had reached

  // ---- gradients that are reduced elsewhere

  /// Has memory for the gradients of these parameters, the same on all ranks, that is common to all ranks where they
  /// share gradients. What this rank's program still refers to of it is spared, so it may be written to when all ranks
  /// have come here. Collective.
  void make_common(const std::vector<bool>& parameters);

  /// That of parameter `index`; undefined where each rank has a gradient of its own.
  SharedGradient common_memory(std::size_t index) const;

  /// What the parameter gets as its gradient when that memory has been written to, with its squares.
  const at::Tensor& common_gradient(std::size_t index);

  /// When the pass's last gradient of this model came on rank 0, by RankPass::arrivals; 0: it had none.
  std::uint64_t last_arrival() const { return last_arrival_; }

 private:
  void take_over_tensors();
  void stop();

  // ---- a pass
  void arriving(std::size_t index);
  void arrived(std::size_t index);
  void release_reduced();
  std::size_t tell_each_other();
  void check_as_promised() const;
  void start(ReducedBucket& bucket, bool whole);
  std::int64_t reduced_bytes(const ReducedBucket& bucket) const;
  void take(ReducedBucket& bucket, std::size_t index);
  void write_to_bucket(ParameterSlot& slot, at::Tensor& gradient);
  void list_for_reduction(ReducedBucket& bucket, ParameterSlot& slot, const at::Tensor& gradient);
  bool becomes_view(const ParameterSlot& slot, const at::Tensor& gradient) const;
  const at::Tensor& result(ParameterSlot& slot) const;
  void give_back(ReducedBucket& bucket);
  void reduce_unexpected();
  void reduce_before();
  void reduce_sparse(std::size_t index);
  at::Tensor new_gradient(std::size_t index) const;
  std::uint8_t state_of(std::size_t index) const;

  // ---- what gradients held before the window
  void keep_before(std::size_t index);
  void look_for_writes(std::size_t index);
  void scale_added(std::size_t index, double factor);

  // ---- buckets
  void learn();
  void build_buckets();
  void add_buckets_of_unexpected();
  void add_buckets(const std::vector<std::size_t>& order);
  void allocate(std::size_t first);
  void allocate_own(std::size_t index, bool lend);
  bool shares_buckets() const;
  void share_buckets(std::size_t first);
  void spare_what_is_kept();
  void spare_bucket(std::size_t index);
  void drop_buckets();
  bool buckets_fit() const;
  bool alone() const { return communicator_.world_size() == 1 && !hook_; }

  std::shared_ptr<torch::nn::Module> module_;
  comm::Communicator& communicator_;
  comm::RankGroup& group_;
  RankPass& pass_;
  GradientReducerOptions options_;
  CommunicationHook hook_;
  bool called_ = false;

  NamedTensors parameters_;
  std::unordered_map<const void*, std::size_t> index_;  // of a parameter
  std::vector<at::Tensor> buffers_;
  SharedWeights weights_;
  std::vector<ParameterSlot> slots_;  // of parameters_
  std::vector<ReducedBucket> buckets_;
  std::optional<FiniteCheck> finite_check_;  // none: gradients are not looked at
  FollowedTensors followed_;

  // Of the current pass.
  bool in_pass_ = false;
  std::size_t started_ = 0;   // buckets
  std::size_t released_ = 0;  // of them
  bool adds_up_squares_ = false;
  bool adds_locally_ = false;  // a pass that is not reduced has reached a parameter since the last reduction
  PassReport told_;
  std::vector<std::uint8_t> anywhere_;  // what told_ has of each parameter, of all ranks together
  std::vector<std::uint8_t> reached_;   // anywhere_ of the last pass that reached any
  std::vector<std::size_t> order_;      // in which rank 0's gradients came
  std::uint64_t last_arrival_ = 0;
};

}  // namespace tandem::nn
