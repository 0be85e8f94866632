#pragma once

#include <string>
#include <vector>

namespace tandem {

/// How what a launch's ranks shared has ended.
struct LaunchEnd {
  std::vector<int> stuck;  ///< ranks whose threads cannot be joined; should they ever come back, they sleep for ever
  std::string problem;     ///< what went wrong with the end itself; empty: nothing
};

}  // namespace tandem
