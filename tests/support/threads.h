#pragma once

#include <cstddef>
#include <filesystem>
#include <iterator>
#include <thread>

namespace tandem::test {

inline std::ptrdiff_t threads_of_this_process() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"), std::filesystem::directory_iterator());
}

/// Whether no more than `before` threads are left, or soon are: the kernel removes a thread's entry a moment after it
/// was joined. For the same reason `before` may have been counted a little too high.
inline bool no_more_threads_than(std::ptrdiff_t before) {
  for (int tries = 0; tries < 10'000 && threads_of_this_process() > before; ++tries) std::this_thread::yield();
  return threads_of_this_process() <= before;
}

}  // namespace tandem::test
