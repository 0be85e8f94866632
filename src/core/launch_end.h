#pragma once

#include <string>
#include <vector>

namespace tandem {

/// What went wrong when the part of the backend that a launch's ranks share was shut down.
struct LaunchEnd {
  /// The process's ranks, from 0, whose threads cannot be joined; should they ever come back, they sleep for ever.
  std::vector<int> stuck;
  std::string problem;  ///< what went wrong with the end itself; empty: nothing
};

}  // namespace tandem
