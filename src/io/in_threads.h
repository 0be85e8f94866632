// Work on several files at once.
#pragma once

#include <cstddef>
#include <functional>

namespace tandem::io {

/// Calls `work` with 0 to `count` - 1, on the calling thread and at most three that oneTBB lends. Throws what the first
/// `work` that failed threw; those that had not begun then are left out.
void in_threads(std::size_t count, const std::function<void(std::size_t)>& work);

}  // namespace tandem::io
