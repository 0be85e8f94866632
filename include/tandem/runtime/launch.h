#pragma once

#include <functional>

#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch_config.h"

namespace tandem {

/// Runs `body` once on every rank, each on a thread of its own named "rank 0", "rank 1", …, and returns when all have
/// ended.
///
/// The first exception that leaves a body ends all ranks: whoever waits for another rank, or calls Tandem next, gets
/// Cancelled. Then RankError is thrown here with the rank and, nested, the original exception. Ranks that make
/// different collective calls, return while others wait for them, or keep others waiting longer than config.timeout,
/// fail with CollectiveError in the same way; so do all with Cancelled, and no rank to blame (-1), when a stop is
/// requested of config.cancel before they have ended. Throws ConfigError when `config` does not fit the machine, or
/// when called on a rank thread. May be called any number of times, also after a failure.
void launch(const LaunchConfig& config, const std::function<void(Accelerator&)>& body);

/// Launches as `launch` does, on what `examine` has found: for a program that asks first, such as for the number of
/// ranks, and would have the machine examined twice. Ranks, devices and threads are those of `state`, whatever its
/// config says of them; the rest of the config may have been changed since. Throws ConfigError also for a `state` that
/// is not from `examine`.
void launch_on(const AcceleratorState& state, const std::function<void(Accelerator&)>& body);

}  // namespace tandem
