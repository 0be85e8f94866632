#pragma once

namespace tandem {

/// Puts an allocator before LibTorch's CPU allocator that looks after the tensors within a RankMemoryScope and passes
/// the requests of all other threads on. Once a process, and never taken away again: a tensor of another thread might
/// just be asking for memory. Called before rank threads start.
void install_rank_memory();

/// Frees what the calling thread keeps.
void free_rank_memory();

/// While alive, the CPU tensors of 16 KiB or more that the calling thread makes and frees keep their memory for its
/// next tensors. The C library gives large blocks back to the kernel, which clears them anew for each step: in a small
/// convolutional network that is a third of the time.
///
/// Kept memory is at most twice what the thread's tensors have ever used at a time (counting those that other threads
/// have freed), and is freed with the scope; a tensor may outlive it, and be freed by any thread.
class RankMemoryScope {
 public:
  RankMemoryScope();
  ~RankMemoryScope();
  RankMemoryScope(const RankMemoryScope&) = delete;
  RankMemoryScope& operator=(const RankMemoryScope&) = delete;
};

/// While alive, the calling thread's tensors are as those of any other thread: for what others will keep and free.
class OtherMemoryScope {
 public:
  OtherMemoryScope();
  ~OtherMemoryScope();
  OtherMemoryScope(const OtherMemoryScope&) = delete;
  OtherMemoryScope& operator=(const OtherMemoryScope&) = delete;

 private:
  void* const before_;
};

}  // namespace tandem
