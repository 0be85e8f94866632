#pragma once

#include <functional>
#include <string>

#include "tandem/runtime/launch.h"

// What the checks of this program share.
namespace tandem::gpu_checks {

/// Prints whether it holds, and counts what does not.
void expect(bool holds, const std::string& what);

/// `ranks` ranks on the GPUs that there are.
LaunchConfig on_gpus(int ranks);

/// What `work` throws, or nothing.
std::string error_of(const std::function<void()>& work);

/// Sessions whose ranks have GPUs.
void check_sessions(int ranks);

}  // namespace tandem::gpu_checks
