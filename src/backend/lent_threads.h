// Threads of oneTBB, which belong to the whole process.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace tandem {

/// Calls a function on threads that oneTBB lends, whose limit it raises by as many while it lives. oneTBB promises
/// none: nothing may wait until one has come.
class LentThreads {
 public:
  /// For at most `most` >= 1 threads at once, or as many as a limit of the process's own (tbb::global_control) allows
  /// now. In `work`, which throws nothing, they are named "`name` `first`" and so on, and run LibTorch's operators
  /// alone.
  LentThreads(int most, std::string name, int first, std::function<void()> work);

  /// Waits for those that work; who comes later does nothing.
  ~LentThreads();
  LentThreads(const LentThreads&) = delete;
  LentThreads& operator=(const LentThreads&) = delete;

  /// One more thread is to call `work` once, unless as many as may work at once have been called and not come yet.
  void call() noexcept;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace tandem
