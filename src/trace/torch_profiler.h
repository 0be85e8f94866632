// LibTorch's profiler (Kineto) over several threads.
#pragma once

#include <memory>

#include <ATen/record_function.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/autograd/profiler_kineto.h>

namespace tandem::trace {

/// A run of LibTorch's profiler that belongs to no thread: threads join and leave. (LibTorch's own way to do that,
/// enableProfilerInChildThread, leaves its callbacks behind and complains.) One a process.
class TorchProfiler {
  using Result = torch::autograd::profiler::ProfilerResult;

 public:
  /// What LibTorch keeps a thread to find its profiler.
  struct ThreadState {
    std::shared_ptr<c10::ThreadLocalDebugInfo> info;
    at::RecordFunctionTLS callbacks;

    static ThreadState current();
    void make_current() const;
  };

  /// Starts recording, of no thread yet; `gpu`: kernels too. Throws what LibTorch throws, as when a profiler of the
  /// calling thread's is on.
  void start(bool gpu);

  /// Ends it. Nobody may be inside it.
  std::unique_ptr<Result> stop();

  /// While alive, the calling thread is recorded. To be destroyed on it.
  class Inside {
   public:
    explicit Inside(const TorchProfiler& profiler) : before_(ThreadState::current()) { profiler.state_.make_current(); }
    ~Inside() { before_.make_current(); }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    const ThreadState before_;
  };

 private:
  ThreadState state_;
};

}  // namespace tandem::trace
