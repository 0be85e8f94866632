#pragma once

#include <filesystem>

#include "run.h"

namespace tandem_report {

/// Reads the log and the images of a run, which may still be going on. What is damaged or unknown is left out, and a
/// note says so; images are read from inside `directory` only. Where a run was resumed, what it had logged at later
/// steps before is forgotten. Throws tandem::ConfigError when there is no such directory or no log in it.
Run read_run(const std::filesystem::path& directory);

}  // namespace tandem_report
