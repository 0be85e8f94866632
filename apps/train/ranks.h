// Which ranks train, on this machine and on others.
#pragma once

#include "options.h"

namespace train {

/// Finds this process's place among several machines: what a launcher has started is one of several processes, unless
/// --nodes says otherwise. Throws tandem::ConfigError when a flag does not go with several.
void settle_nodes(Options& options);

/// tandem::examine, whose errors name the flag. Waits for the other machines, where there are some.
tandem::PartialState examine_ranks(const tandem::LaunchConfig& launch);

}  // namespace train
