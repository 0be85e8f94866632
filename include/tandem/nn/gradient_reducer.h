#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include "tandem/comm/communicator.h"
#include "tandem/core/cancel_token.h"
#include "tandem/nn/gradient_bucket.h"
#include "tandem/nn/gradient_reducer_options.h"
#include "tandem/nn/shared_weights.h"

namespace torch::optim {
class Optimizer;
}

namespace tandem::comm {
class RankGroup;
}

namespace tandem::nn {

class FiniteCheck;
class FollowedTensors;
class GradientReducers;

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
class GradientReducer {
 public:
  /// Gives all ranks' modules, which have the same parameters and buffers (Accelerator::prepare looks), rank 0's
  /// values. Collective. `communicator` and `group` outlive the reducer's work, which `stop` ends.
  GradientReducer(std::shared_ptr<torch::nn::Module> module, comm::Communicator& communicator, comm::RankGroup& group,
                  const GradientReducerOptions& options = {});
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Takes over parameters and buffers that the module has got, or lost, since. Collective, like the constructor.
  void update();

  /// Name of a parameter that the module has got since.
  std::optional<std::string> added_parameter() const;

  /// Has buckets reduced by `hook`; none: by their mean. All ranks set theirs between the same two reductions. What a
  /// pass adds to a gradient whose bucket has started (the parameter was reached more often than in the last pass) and
  /// sparse gradients are averaged all the same.
  void set_communication_hook(CommunicationHook hook);
  bool has_communication_hook() const { return static_cast<bool>(hook_); }  ///< whether there is a hook

  /// Names of the parameters that require a gradient and had none on any rank in the last reduction of this model.
  std::vector<std::string> unused_parameters() const;

  /// Drops the gradients.
  void clear_gradients();

  /// Leaves of the gradients what no reduction has averaged: drops those, and subtracts those parts, that one has.
  void keep_unreduced();

  /// Whether passes of this rank have added to the gradient of `parameter`, which it still has, since the last
  /// reduction.
  bool has_local_gradient(const at::Tensor& parameter) const;

  /// Whether passes of this rank have added to any gradient since the last reduction.
  bool has_local_gradients() const { return adds_locally_; }

  /// Overwrites parameters and buffers with rank `root`'s. Collective.
  void broadcast(int root);

  /// The buffers that reductions make rank 0's.
  std::vector<at::Tensor> synchronized_buffers() const {
    return options_.broadcast_buffers ? buffers_ : std::vector<at::Tensor>();
  }

  /// Throws Error when gradients of a reduction were infinite or NaN, as far as that is known; with `wait`, of all
  /// reductions so far. See GradientReducerOptions::check_finite.
  void throw_if_not_finite(bool wait);

  /// Tells that `optimizer` has updated its parameters. Graphs through a model that has one of them are of no use now,
  /// so its buffers that had to wait for them become rank 0's. Collective.
  void updated_by(const torch::optim::Optimizer& optimizer);

  /// Forgets what a backward pass has reached that is not reduced here.
  void forget_pass();

  /// Averages over the ranks: parameters that require a gradient, and buffers of floating-point and complex types. The
  /// others become rank 0's. Buffers stay as they are when broadcast_buffers is off. Collective.
  void average_weights();

  /// Forgets which gradients came in the accumulation window so far, for `scale_window`.
  void begin_window();

  /// Multiplies by `factor` what backward passes of the window have added to this rank's gradients. What these held
  /// before the window stays. Throws ConfigError where the two can no longer be told apart, because the program has
  /// written to such a gradient between the window's passes.
  void scale_window(double factor);

  /// A reduced gradient that is one memory for all ranks.
  struct SharedGradient {
    at::Tensor memory;   ///< the gradient, averaged
    at::Tensor squares;  ///< sums of squares of its blocks, float64 (see comm::reduce_with_squares); perhaps undefined
  };

  /// Has reductions, from the next pass on, add up the squares of gradients too: SharedGradient::squares.
  void add_up_squares() { adds_up_squares_ = true; }

  /// The shared gradient of a parameter of this model; nothing once this rank has written to its gradient.
  std::optional<SharedGradient> shared_gradient(const at::Tensor& parameter) const;

  /// Tells that the memory of such a gradient was written to.
  void shared_gradient_written(const at::Tensor& parameter);

  /// Whether the gradient of a parameter of this model is the memory of all ranks: see shared_gradient.
  bool shares_gradient(const at::Tensor& parameter) const;

  /// Whether the parameter was the model's when it was prepared.
  bool has(const at::Tensor& parameter) const { return index_.contains(parameter.unsafeGetTensorImpl()); }

  /// Notes that the model was called as `prepare` returned it, in mixed precision where the launch asks for it.
  void note_call() { called_ = true; }
  bool was_called() const { return called_; }  ///< whether it ever was

  /// The module's parameters by their first names, each once.
  const NamedTensors& parameters() const { return parameters_; }
  const std::shared_ptr<torch::nn::Module>& module() const { return module_; }  ///< the replica of this rank
  SharedWeights& weights() { return weights_; }              ///< its parameters as memory that ranks may share
  const SharedWeights& weights() const { return weights_; }  ///< the same

 private:
  friend class GradientReducers;

  struct Slot;    // of a parameter
  struct Bucket;  // gradients that are reduced together
  struct Told;    // what a rank tells the others after a pass

  // ---- the model
  void take_over_tensors();
  void watch_parameters();
  void stop();
  void leave_launch();

  // ---- a pass, in this order; see GradientReducers
  void begin_pass();
  void spare_what_is_kept();
  void spare_bucket(std::size_t index);
  void arriving(std::size_t index);
  void arrived(std::size_t index);
  bool start_ready_buckets();
  void release_reduced();
  void settle();
  void collect();
  void reduce_rest(int main);
  void check_finite();
  void end_pass();
  void check_not_interrupted() const;

  std::size_t tell_each_other();
  void check_as_promised() const;
  void start(Bucket& bucket, bool whole);
  std::int64_t reduced_bytes(const Bucket& bucket) const;
  void take(Bucket& bucket, std::size_t index);
  void write_to_bucket(Slot& slot, at::Tensor& gradient);
  void list_for_reduction(Bucket& bucket, Slot& slot, const at::Tensor& gradient);
  bool becomes_view(const Slot& slot, const at::Tensor& gradient) const;
  const at::Tensor& result(Slot& slot) const;
  void give_back(Bucket& bucket);
  void reduce_unexpected();
  void reduce_before();
  void reduce_sparse(std::size_t index);
  at::Tensor new_gradient(std::size_t index) const;
  std::uint8_t state_of(std::size_t index) const;

  // ---- what gradients held before the window
  bool keeps_apart() const;
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
  void drop_buckets();
  bool buckets_fit() const;
  bool alone() const { return communicator_.world_size() == 1 && !hook_; }

  std::shared_ptr<torch::nn::Module> module_;
  comm::Communicator& communicator_;
  comm::RankGroup& group_;
  GradientReducerOptions options_;
  CommunicationHook hook_;
  bool called_ = false;

  NamedTensors parameters_;
  std::unordered_map<const void*, std::size_t> index_;  // of a parameter
  std::vector<at::Tensor> buffers_;
  SharedWeights weights_;
  std::vector<Slot> slots_;  // of parameters_
  std::vector<Bucket> buckets_;
  std::unique_ptr<FiniteCheck> finite_check_;  // null: gradients are not looked at
  std::unique_ptr<FollowedTensors> followed_;
  GradientReducers* reducers_ = nullptr;  // told when a bucket may be ready

  // Of the current pass.
  bool in_pass_ = false;
  std::size_t started_ = 0;   // buckets
  std::size_t released_ = 0;  // of them
  bool adds_up_squares_ = false;
  bool adds_locally_ = false;  // a pass that is not reduced has reached a parameter since the last reduction
  std::unique_ptr<Told> told_;
  std::vector<std::uint8_t> anywhere_;  // what told_ has of each parameter, of all ranks together
  std::vector<std::uint8_t> reached_;   // anywhere_ of the last pass that reached any
  std::vector<std::size_t> order_;      // in which rank 0's gradients came
  std::uint64_t last_arrival_ = 0;      // of rank 0, by the count of GradientReducers
};

/// The reducers of one rank's models, which share the passes. Buckets start in one order over all models, the same on
/// all ranks: the models take turns, the one first whose gradients were complete first on rank 0 in the last pass.
class GradientReducers {
 public:
  ~GradientReducers();

  /// The reducer of `module`, if it has one.
  std::shared_ptr<GradientReducer> find(const torch::nn::Module& module) const;
  /// That of the model that has `parameter`; null for none.
  GradientReducer* find(const at::Tensor& parameter) const;

  /// Adds a model. All ranks add theirs in the same order.
  void add(const std::shared_ptr<GradientReducer>& reducer);

  std::size_t size() const { return all_.size(); }  ///< how many models there are
  /// Keeps the first `size`.
  void shorten(std::size_t size);

  /// In the order in which they were added.
  auto begin() const { return all_.begin(); }
  auto end() const { return all_.end(); }  ///< behind the last

  /// To be called before every backward pass. Throws ConfigError when a model has other parameters than it had when it
  /// was prepared.
  void before_pass();

  /// Whether passes from now on are followed by GradientReducer::scale_window: then what gradients held before them is
  /// kept apart, which takes as much memory as the gradients that there are.
  void keep_apart(bool keeps) { keeps_apart_ = keeps; }

  /// Begins a pass whose gradients, with those accumulated since the last reduction, are reduced. Throws
  /// CollectiveError when the last one was left in the middle. Collective, with `finish_pass`.
  void begin_pass();

  /// Ends it: all gradients are the mean over the ranks, and buffers rank `main`'s.
  void finish_pass(int main = 0);

 private:
  friend class GradientReducer;
  void start_ready_buckets();

  std::vector<std::shared_ptr<GradientReducer>> all_;
  std::vector<GradientReducer*> turns_;
  std::uint64_t arrivals_ = 0;
  bool keeps_apart_ = false;
};

}  // namespace tandem::nn
