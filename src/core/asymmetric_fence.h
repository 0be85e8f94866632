#pragma once

#include <atomic>

namespace tandem {

/// Two fences for a handshake of which one side runs all the time and the other rarely: each side stores, fences, and
/// loads what the other stores, and at least one of them sees the other's store. `light_fence` costs nothing where
/// `heavy_fence` can do the work of both: it makes every running thread of the process fence (some 0.2 to 5 µs).
///
/// Source: P1202R5, "Asymmetric fences"; membarrier(2), MEMBARRIER_CMD_PRIVATE_EXPEDITED.
class AsymmetricFence {
 public:
  /// Where the kernel has no such call, or a sandbox forbids it, the light fence is a full one as well.
  AsymmetricFence() noexcept;

  /// Stores `value` for the side that runs all the time, as a release, with the light fence behind it.
  template <class T>
  void store_and_light_fence(std::atomic<T>& target, T value) const noexcept {
    if (heavy_works_) {
      target.store(value, std::memory_order_release);
      // Only the compiler must not move the load that follows before the store; the other side's fence does the rest.
      std::atomic_signal_fence(std::memory_order_seq_cst);
    } else {
      // seq_cst, and so is the load that follows: no fence is needed (ThreadSanitizer knows none).
      target.store(value, std::memory_order_seq_cst);
    }
  }

  /// For the side that runs rarely, between its store and its load, both seq_cst.
  void heavy_fence() const noexcept;

 private:
  const bool heavy_works_;
};

}  // namespace tandem
