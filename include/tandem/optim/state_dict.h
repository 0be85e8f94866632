#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/ivalue.h>
#include <torch/optim/optimizer.h>

#include "tandem/optim/grad_scaler.h"
#include "tandem/optim/scheduler.h"

/// \file
/// States as the dicts that PyTorch's `state_dict()` gives and its `load_state_dict()` takes. Names, layouts and kinds
/// of numbers: PyTorch 2.11, torch/optim and torch/amp/grad_scaler.py. Nothing here is collective.
namespace tandem::optim {

/// Further values of each parameter group.
using GroupValues = std::vector<std::map<std::string, double>>;

/// State and options of `optimizer`: SGD, Adam, AdamW, RMSprop and Adagrad as PyTorch's; of any other class what its
/// own save() writes, as bytes, which PyTorch cannot use. Tensors are the optimizer's own, not copies. `more` goes into
/// the parameter groups.
c10::IValue state_dict(const torch::optim::Optimizer& optimizer, const GroupValues& more = {});

/// How a state is taken over.
struct LoadOptions {
  /// Whether a parameter's state is wanted; empty: of all.
  std::function<bool(const at::Tensor& parameter)> wanted = {};
  /// Tensors of the dict may become the optimizer's, instead of being copied.
  bool may_take = false;
};

/// Checks that `state`, Tandem's or PyTorch's, is one of an optimizer like `optimizer`, and returns what gives it to
/// it, options included: a function that does not throw for reasons that can be checked. Throws CheckpointError that
/// names the group, parameter and field otherwise; nothing is changed then.
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
