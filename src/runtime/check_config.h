#pragma once

#include "tandem/runtime/launch_config.h"

namespace tandem {

/// Whether the launch is one of several processes'.
bool spans_nodes(const LaunchConfig& config);

/// Throws ConfigError for what fits no machine.
void check_config(const LaunchConfig& config);

/// Gives the configuration what exact mode implies. Throws ConfigError when the ranks do not fit it.
void apply_exact(AcceleratorState& state);

}  // namespace tandem
