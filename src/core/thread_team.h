#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/cancel_token.h"

namespace tandem {

/// What threads a team has.
struct ThreadTeamOptions {
  int size = 1;                              ///< how many
  std::string name = "rank";                 ///< thread i is named "rank i"
  std::vector<std::vector<int>> cores = {};  ///< by thread, the cores it may use; empty: any
};

/// Threads that run one body, each with its number. The first exception that leaves a body fires the token with that
/// exception and number. Where Linux lets a thread ask for short time slices, they do: one that wakes up does not wait
/// for another program's.
class ThreadTeam {
 public:
  /// Starts the threads. Throws Error when the system has no more threads; those that were started are cancelled and
  /// joined then. `token` outlives the team.
  ThreadTeam(ThreadTeamOptions options, CancelToken& token, std::function<void(int)> body);

  /// Fires the token if a thread still runs, and joins all.
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  /// Waits until all bodies have ended, the token has fired, or for `time`; true in the first case.
  bool wait_for(std::chrono::nanoseconds time);

  /// Gives thread `index` up, which will never come back to this object: it counts as ended and is not joined.
  void abandon(int index);

  /// Waits for all threads. What a body threw is in the token.
  void join();

 private:
  void run(int index);

  ThreadTeamOptions options_;
  CancelToken& token_;
  std::function<void(int)> body_;
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;  // guarded by mutex_
  CancelToken::Subscription subscription_;
  std::vector<std::thread> threads_;
};

}  // namespace tandem
