#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// What a scheduler knows beside its options, under the names of PyTorch's state_dict. Options are not part of it: a
/// scheduler goes on with its own, and so in its own shape.
struct SchedulerState {
  using Value = std::variant<std::int64_t, double, std::vector<double>>;  ///< a list has a value a parameter group
  std::map<std::string, Value> values;                                    ///< by PyTorch's names
  std::vector<SchedulerState> schedulers = {};  ///< of a SequentialLR; PyTorch's `_schedulers`
  /// The rates by parameter group that the schedule would have come to by itself, had nobody else set any. A
  /// ReduceLROnPlateau, whose rates follow from the metrics, has those that it began with. Empty: not known, as in
  /// PyTorch's files.
  std::vector<double> course = {};

  /// The value of `name`, of one of the three kinds. Throws CheckpointError when it is missing or of another kind.
  template <class T>
  const T& get(const std::string& name) const;

  bool operator==(const SchedulerState&) const = default;  ///< when all values are equal
};

/// Changes the learning rates of an optimizer's parameter groups: an LRScheduler after each update, a ReduceLROnPlateau
/// after each evaluation. Nothing here is collective: each rank has its own, and all take the same steps.
class Scheduler {
 public:
  virtual ~Scheduler() = default;
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Calls of step() so far. (PyTorch's name; what it counts is the caller's.)
  std::int64_t last_epoch() const { return last_epoch_; }

  /// The optimizer whose rates it changes.
  torch::optim::Optimizer& optimizer() const { return optimizer_; }

  /// The learning rates now, by parameter group. Throws ConfigError when the optimizer got other parameter groups since
  /// the scheduler was made.
  std::vector<double> last_lr() const;

  /// What load_state needs to go on from here: `last_epoch`, `_last_lr` and what a subclass adds.
  virtual SchedulerState state() const;

  /// Goes on from where another scheduler stood. The number of steps is that of `state`, and so are the rates that a
  /// schedule begins with (a OneCycleLR has its own). Of one with the same options, the same numbers follow as if it
  /// had never stopped. Of one with other options, such as the shorter schedule of a training that is now to be longer,
  /// this one's options count: the rates become those that this schedule has at that step. Names that it does not need
  /// are ignored, so that PyTorch's state_dict serves as well. Throws CheckpointError when a name is missing, of
  /// another kind, or made for other parameter groups.
  virtual void load_state(const SchedulerState& state);

  /// `state`, another scheduler's, with the rates that this one begins with: load_state then gives the rates of this
  /// schedule over these. A ReduceLROnPlateau keeps the share that the metrics have left of them.
  SchedulerState with_own_rates(SchedulerState state) const;

  /// What PyTorch's scheduler of this kind keeps in the optimizer's parameter group `group`, for files that PyTorch
  /// reads.
  virtual std::map<std::string, double> group_values(std::size_t group) const;

 protected:
  /// `optimizer` outlives the scheduler.
  explicit Scheduler(torch::optim::Optimizer& optimizer)
      : optimizer_(optimizer), groups_(optimizer.param_groups().size()) {}

  /// Sets the learning rates, one a parameter group.
  void set_lrs(const std::vector<double>& lrs);

  std::int64_t last_epoch_ = 0;  ///< calls of step() so far

 private:
  torch::optim::Optimizer& optimizer_;
  std::size_t groups_;  // at the time it was made
};

/// A schedule by the number of updates. Derive from it for a schedule of your own: say what a rate becomes in lr_of, by
/// last_epoch(), the rate before and the options alone, and call `apply` at the end of the constructor when update 0
/// has another rate than the optimizer's. load_state goes through the updates from 0 to find out the rate.
class LRScheduler : public Scheduler {
 public:
  /// Sets the rates of the next update. Throws what last_lr throws.
  void step();

  /// The rates that the schedule goes by, by parameter group: the optimizer's when the scheduler was made. (A
  /// OneCycleLR has its own.)
  const std::vector<double>& base_lrs() const { return base_lrs_; }

  /// Adds `base_lrs` and the course.
  SchedulerState state() const override;

  /// Throws also what the schedule throws at a step that it does not reach.
  void load_state(const SchedulerState& state) override;

  /// `initial_lr`.
  std::map<std::string, double> group_values(std::size_t group) const override;

 protected:
  /// Takes the optimizer's rates as base_lrs(). `optimizer` outlives the scheduler.
  explicit LRScheduler(torch::optim::Optimizer& optimizer)
      : Scheduler(optimizer), base_lrs_(last_lr()), course_(base_lrs_) {}

  /// The rate of a parameter group for update last_epoch(), when `lr` is that of the update before, or for update 0
  /// the base rate.
  virtual double lr_of(std::size_t group, double lr) const = 0;

  /// Called before lr_of: what else changes when last_epoch() does.
  virtual void advance() {}

  /// Sets the rates of update last_epoch().
  void apply();

  std::vector<double> base_lrs_;  ///< see base_lrs()

  /// Takes the rates that the schedule begins with from another one's state, as far as they are not its own.
  virtual void take_base(const SchedulerState& state);

  /// Whether base_lrs() are made of the options, not the optimizer's.
  virtual bool has_own_base() const { return false; }

  /// Before load_state goes through the updates: what counts them beside last_epoch() begins anew.
  virtual void rewind() {}

 private:
  friend class SequentialLR;  // counts and asks for the schedulers it is made of

  void go_to(std::int64_t last_epoch);
  std::vector<double> rates_after(const SchedulerState& state) const;

  std::vector<double> course_;  // see SchedulerState
  bool sets_first_ = false;     // the rate of update 0
};

}  // namespace tandem::optim
