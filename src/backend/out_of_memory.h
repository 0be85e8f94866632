#pragma once

#include <cstddef>
#include <functional>
#include <utility>

namespace tandem {

/// A device that had no memory for what was asked of it. In bytes.
struct OutOfMemory {
  int device = 0;
  std::size_t requested = 0;
  std::size_t free = 0;
};

/// While alive, `tell` hears of the calling thread's lack of device memory, before the exception is thrown. Watches
/// nest.
class OutOfMemoryWatch {
 public:
  using Tell = std::function<void(const OutOfMemory&)>;

  explicit OutOfMemoryWatch(Tell tell) : tell_(std::move(tell)), outer_(std::exchange(innermost_, this)) {}
  ~OutOfMemoryWatch() { innermost_ = outer_; }
  OutOfMemoryWatch(const OutOfMemoryWatch&) = delete;
  OutOfMemoryWatch& operator=(const OutOfMemoryWatch&) = delete;

  /// For allocators.
  static void tell(const OutOfMemory& event) {
    if (innermost_) innermost_->tell_(event);
  }

 private:
  static inline thread_local OutOfMemoryWatch* innermost_ = nullptr;
  const Tell tell_;
  OutOfMemoryWatch* const outer_;
};

}  // namespace tandem
