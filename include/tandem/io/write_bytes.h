#pragma once

#include <cstddef>
#include <functional>

namespace tandem::io {

/// Takes bytes in their order. Throws CheckpointError.
using WriteBytes = std::function<void(const void* data, std::size_t bytes)>;

}  // namespace tandem::io
