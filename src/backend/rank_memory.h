#pragma once

namespace tandem {

/// While alive, the CPU tensors of 16 KiB or more that the calling thread makes and frees keep their memory
/// for its next tensors. The C
/// library gives large blocks back to the kernel, which clears them anew for each step: in a small convolutional
/// network that is a third of the time.
///
/// Kept memory is at most twice what the thread's tensors have ever used at a time, and is freed with the scope; a
/// tensor may outlive it, and be freed by any thread. Tensors of other threads are none of its business: LibTorch has
/// one CPU allocator, so the first scope of a process puts one before it that passes their requests on.
class RankMemoryScope {
 public:
  RankMemoryScope();
  ~RankMemoryScope();
  RankMemoryScope(const RankMemoryScope&) = delete;
  RankMemoryScope& operator=(const RankMemoryScope&) = delete;
};

}  // namespace tandem
