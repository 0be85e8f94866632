#pragma once

#include <string>

#include "tandem/core/error.h"

namespace tandem::io {

/// Throws the CheckpointError of the file or directory that people are shown as `path`.
[[noreturn]] inline void throw_checkpoint_error(const std::string& path, const std::string& problem) {
  throw CheckpointError(path + ": " + problem);
}

}  // namespace tandem::io
