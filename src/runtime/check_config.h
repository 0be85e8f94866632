#pragma once

#include "tandem/runtime/launch_config.h"

namespace tandem {

/// Throws ConfigError for what fits no machine.
void check_config(const LaunchConfig& config);

}  // namespace tandem
