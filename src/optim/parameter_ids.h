// Which parameters of a saved optimizer are which of this one.
#pragma once

#include <vector>

#include "optim/ivalue_dict.h"
#include "optim/state_dict.h"

namespace tandem::optim {

/// The names of a group's parameters as PyTorch has them in "param_names"; an empty list when one has none.
List names_of(const std::vector<at::Tensor>& parameters, const ParameterNames& names);

/// By group, the ids under which a state has the optimizer's parameters: by name where both sides have names of the
/// same kind, by position otherwise. Throws CheckpointError when groups do not have the same parameters.
std::vector<std::vector<IValue>> parameter_ids(const torch::optim::Optimizer& optimizer, const IValue& groups,
                                               const ParameterNames& names);

}  // namespace tandem::optim
