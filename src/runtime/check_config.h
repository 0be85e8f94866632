#pragma once

#include "tandem/runtime/state.h"

namespace tandem {

/// Throws ConfigError for what fits no machine.
void check_config(const LaunchConfig& config);

}  // namespace tandem
