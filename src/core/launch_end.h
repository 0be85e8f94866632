#pragma once

#include <string>
#include <vector>

namespace tandem {

/// What went wrong when the part of the backend that a launch's ranks share was shut down.
struct LaunchEnd {
  std::vector<int> stuck;  ///< ranks whose threads cannot be joined; should they ever come back, they sleep for ever
  std::string problem;     ///< what went wrong with the end itself; empty: nothing
};

}  // namespace tandem
