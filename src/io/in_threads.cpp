#include "io/in_threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>

#include "backend/lent_threads.h"

namespace tandem::io {

void in_threads(std::size_t count, const std::function<void(std::size_t)>& work) {
  constexpr std::size_t kMostHelpers = 3;
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto run = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        next = count;
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  {
    std::optional<LentThreads> helpers;
    if (count > 1) {
      const int most = static_cast<int>(std::min(count - 1, kMostHelpers));
      helpers.emplace(most, "files", 1, run);
      for (int i = 0; i < most; ++i) helpers->call();
    }
    run();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace tandem::io
