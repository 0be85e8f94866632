#pragma once

#include <functional>
#include <string>

#include "tandem/runtime/launch_config.h"

namespace tandem_tool {

/// A part of the self-test of a machine's ranks. `run` returns what was checked, in words, and throws when it does not
/// hold.
struct SelfTestPart {
  std::string name;
  std::function<std::string(const tandem::LaunchConfig& config)> run;
};

/// All collectives, on several types and sizes, against a plain computation on one thread.
SelfTestPart test_collectives();

/// The losses of a small training on all ranks, against those of one rank with the same global batch.
SelfTestPart test_training();

/// The samples that the ranks get, in both modes of the loader, against the plan.
SelfTestPart test_dispatch();

/// Weights that are saved and loaded again, in the folder for temporary files.
SelfTestPart test_checkpoint();

}  // namespace tandem_tool
