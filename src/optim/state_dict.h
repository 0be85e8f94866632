#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/ivalue.h>
#include <torch/optim/optimizer.h>

#include "tandem/optim/detail/optimizer_class.h"
#include "tandem/optim/grad_scaler.h"
#include "tandem/optim/scheduler.h"

/// \file
/// States as the dicts that PyTorch's `state_dict()` gives and its `load_state_dict()` takes. Names, layouts and kinds
/// of numbers: PyTorch 2.11, torch/optim and torch/amp/grad_scaler.py. Nothing here is collective.
namespace tandem::optim {

/// Further values of each parameter group.
using GroupValues = std::vector<std::map<std::string, double>>;

/// The name of a parameter; empty: it has none.
using ParameterNames = std::function<std::string(const at::Tensor& parameter)>;

/// What else is known of an optimizer whose state is saved.
struct SaveOptions {
  ParameterNames names = {};      ///< go into the parameter groups, as PyTorch's `param_names`; empty: none do
  OptimizerClass its_class = {};  ///< of what was prepared
  bool has_stepped = false;       ///< so that an optimizer with state has some
  std::function<void(const std::string& what)> warn = {};  ///< hears of what is not saved and may not matter
};

/// State and options of `optimizer`. SGD, Adam, AdamW, RMSprop and Adagrad: as PyTorch's. Any other class, also one
/// that derives from these: as bytes, which PyTorch cannot use, of what the states in state(), the groups' options and
/// the optimizer itself write in their serialize() and save(). Tensors are the optimizer's own, not copies. `more` goes
/// into the parameter groups. Throws ConfigError that says what to write when such a class has members that no save()
/// of its own writes (numbers that are as they were when it was prepared may stay), or states without serialize().
c10::IValue state_dict(const torch::optim::Optimizer& optimizer, const GroupValues& more = {},
                       const SaveOptions& options = {});

/// How a state is taken over.
struct LoadOptions {
  /// Whether a parameter's state is wanted; empty: of all.
  std::function<bool(const at::Tensor& parameter)> wanted = {};
  /// Tensors of the dict may become the optimizer's, instead of being copied.
  bool may_take = false;
  /// Where the state has names of this kind, parameters are found by them, and otherwise by their position in the
  /// groups.
  ParameterNames names = {};
  /// Whether the options of the parameter groups (learning rate, momentum and so on) become the state's.
  bool with_options = true;
};

/// Checks that `state`, Tandem's or PyTorch's, is one of an optimizer like `optimizer`, and returns what gives it to
/// it, by default with options: a function that does not throw for reasons that can be checked. Throws CheckpointError
/// that names the group, parameter and field otherwise; nothing is changed then.
///
/// The states of a class that Tandem does not know are made by the class itself, in a step over tensors that stand for
/// the parameters, unless it has some already.
std::function<void()> prepare_load(torch::optim::Optimizer& optimizer, const c10::IValue& state,
                                   const LoadOptions& options = {});

/// The state of a scheduler, as PyTorch's of the same kind gives it, without the options.
c10::IValue state_dict(const SchedulerState& state);

/// Reads a scheduler's state from a dict that Tandem or PyTorch has written; what is of no use to a scheduler is left
/// out. Throws CheckpointError.
SchedulerState scheduler_state_of(const c10::IValue& state);

/// The state of a scaler, as PyTorch's gives it.
c10::IValue state_dict(const GradScalerState& state);

/// Reads a scaler's state. Throws CheckpointError that names the field that is missing or of another kind.
GradScalerState grad_scaler_state_of(const c10::IValue& state);

}  // namespace tandem::optim
