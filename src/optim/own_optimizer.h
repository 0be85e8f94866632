// States of optimizers of classes that Tandem does not know: a program's own, and LibTorch's LBFGS.
#pragma once

#include <functional>

#include "optim/ivalue_dict.h"
#include "optim/state_dict.h"

namespace tandem::optim {

/// As state_dict.
IValue dict_of_own(const torch::optim::Optimizer& optimizer, const SaveOptions& options);

/// As prepare_load. Reads also what older versions wrote, which is what the optimizer's save() writes.
std::function<void()> prepare_own(torch::optim::Optimizer& optimizer, const Dict& all, const LoadOptions& options);

}  // namespace tandem::optim
