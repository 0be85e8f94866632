#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "value_diff.h"

namespace tandem_tool {

/// Two runs, or files of them, side by side.
struct RunDifference {
  Partings partings;  ///< those of the first step that has any, and what only one side has
  std::int64_t compared = 0;
  std::string unit;                              ///< what was compared: "checkpoints"
  std::optional<std::int64_t> last_same_step{};  ///< before the first that differs
  std::vector<std::string> notes{};              ///< what else is to be known, as sentences
};

/// Compares the bits of two checkpoints, series of checkpoints, files or directories of weights, files of torch.save,
/// files of JSON, logs or directories of tracked runs. Without `everything`, what differs between machines and numbers
/// of ranks by its nature is left out: times, rates and memory, events, and flags that say where a run ran
/// and what it wrote. Throws tandem::Error when one is none of these, is damaged, or they are of different kinds.
RunDifference compare_runs(const std::string& first, const std::string& second, bool everything);

/// compare_runs of two logs: files with a JSON object a line.
RunDifference compare_logs(const std::string& first, const std::string& second, bool everything);

}  // namespace tandem_tool
