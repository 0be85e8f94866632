// What the ranks of a profile have in common, and each one's part in it.
#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "tandem/runtime/profile.h"
#include "tandem/trace/range.h"
#include "trace/torch_profiler.h"

namespace tandem {

/// One profile of all ranks. The first rank to join starts LibTorch's profiler, the last to leave ends it: nobody waits
/// for anybody, however a rank's body ends.
class ProfileSession {
 public:
  /// Throws ConfigError when the process has one already.
  ProfileSession(int ranks, bool gpu);
  ~ProfileSession();
  ProfileSession(const ProfileSession&) = delete;
  ProfileSession& operator=(const ProfileSession&) = delete;

  /// LibTorch's profiler, which the calling rank may then enter; null when it cannot start.
  const trace::TorchProfiler* join(int rank);

  /// Every rank leaves once, whether it has joined or not, with what it found out.
  void leave(int rank, const RankProfile& profile);

  /// Writes the trace and returns the profile; neither when all ranks ended before `first_step`. After all ranks have
  /// left. Throws Error.
  Profile finish(const std::string& path, std::int64_t first_step) const;

 private:
  struct Rank {
    int thread = 0;  // the kernel's number; 0: has not joined
    RankProfile profile;
  };

  std::mutex mutex_;
  const bool gpu_;
  bool started_ = false;
  std::exception_ptr error_;
  trace::TorchProfiler profiler_;
  std::unique_ptr<torch::autograd::profiler::ProfilerResult> result_;
  std::vector<Rank> ranks_;
  int left_ = 0;
};

/// One rank's part: joins before its first step and leaves after the last, or at its end. Belongs to the rank's thread.
class RankProfiler {
 public:
  RankProfiler(std::shared_ptr<ProfileSession> session, int rank, const ProfileOptions& options);
  ~RankProfiler() { leave(); }
  RankProfiler(const RankProfiler&) = delete;
  RankProfiler& operator=(const RankProfiler&) = delete;

  void step_ended() noexcept;
  void leave() noexcept;

 private:
  using Clock = std::chrono::steady_clock;

  void join();
  RankProfile result() const;

  const std::shared_ptr<ProfileSession> session_;
  const int rank_;
  const ProfileOptions options_;
  std::int64_t steps_ = 0;  // of the body, ended
  bool left_ = false;
  std::optional<trace::TorchProfiler::Inside> inside_;
  std::optional<trace::Recorder> recorder_;
  Clock::time_point begin_;
};

}  // namespace tandem
