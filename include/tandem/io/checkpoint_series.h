#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

/// \file
/// Checkpoints of one training in one directory: `checkpoint_0`, `checkpoint_1` and so on, and a link `latest` to the
/// newest. Other files there are left alone.
namespace tandem::io {

/// Paths of the checkpoints in `directory`, the oldest first; none when there is no such directory.
std::vector<std::string> list_checkpoints(const std::string& directory);

/// Path of the checkpoint that follows those in `directory`, which is made if need be. Throws CheckpointError.
std::string next_checkpoint(const std::string& directory);

/// Has `latest` lead to `checkpoint`, which is in `directory`, and removes the oldest ones beyond `total_limit` (at
/// least 1), never that one. Throws CheckpointError.
void finish_checkpoint(const std::string& directory, const std::string& checkpoint,
                       std::optional<std::int64_t> total_limit);

}  // namespace tandem::io
