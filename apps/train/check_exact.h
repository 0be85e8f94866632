#pragma once

#include "inputs.h"
#include "options.h"

namespace train {

/// What --check-exact does: trains twice for some updates, and prints that all was the same. Throws tandem::Error that
/// says what was not. Returns the exit code.
int check_exact(const Options& options, const tandem::LaunchConfig& launch, const Inputs& inputs);

}  // namespace train
