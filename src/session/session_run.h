// One training of a session, from start to end.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "core/published.h"
#include "core/step_gate.h"
#include "runtime/launch_observer.h"
#include "session/session_events.h"
#include "session/session_rank.h"

namespace tandem {

/// How often a session's host hears of its training.
struct EventPace {
  std::chrono::nanoseconds step_interval;  ///< see SessionOptions, as the next
  bool every_epoch;
};

/// What one training of a session does and is asked for. All members but `execute` and the observer's may be called by
/// any thread.
class SessionRun : private LaunchObserver, public std::enable_shared_from_this<SessionRun> {
 public:
  using TakeSnapshot = std::function<void(std::shared_ptr<const ModelSnapshot>, std::exception_ptr)>;

  /// `events` and `progress` outlive it.
  SessionRun(LaunchConfig config, std::function<void(Accelerator&)> body, SessionEvents& events,
             Published<Progress>& progress, EventPace pace);

  /// Runs it all, on the calling thread.
  void execute() noexcept;

  void pause(PauseOptions options);
  void resume();
  void request_stop();
  void cancel();
  void fail(std::exception_ptr error);  ///< that the host has made
  /// `answer` is called once, on any thread, and must not call this.
  void save_now(const std::string& directory, const SaveStateOptions& options, SaveWritten answer);
  void snapshot(TakeSnapshot take);  ///< which is called once, on any thread

  /// Its session begins another: what it has still to say concerns nobody any more.
  void retire();

  /// Takes what a callback of this run's throws.
  std::function<void(std::exception_ptr)> on_error();

  bool has_ended() const;
  bool wait_until(std::optional<std::chrono::steady_clock::time_point> time) const;
  void throw_if_failed() const;

  /// By a rank that has called exit: waits until no other is there, but not for long.
  void wait_for_other_ranks() const;
  Session::Status status() const;

 private:
  struct Save {
    std::string directory;
    SaveStateOptions options;
    SaveWritten answer;
    bool done = false;
    bool begun = false;  // with several nodes
  };
  struct SnapshotRequest {
    TakeSnapshot take;
    bool done = false;
  };
  struct Outcome {
    SessionState state;
    SessionEvent::Kind event;
    std::exception_ptr error;  // where it has failed
  };

  void before_ranks(comm::RankGroup& group) override;
  void after_ranks() noexcept override;
  void before_body(RankTraining& training) override;
  void body_ended(RankTraining& training) override;
  void after_body(RankTraining& training) noexcept override;
  void rank_ended() noexcept override;
  bool holds_ranks() const override;

  using GateRequest = std::function<void(StepGate&)>;
  void ask(const std::unique_lock<std::mutex>& lock, GateRequest request);
  bool is_active(const std::unique_lock<std::mutex>& lock) const;
  bool spans_nodes() const { return nodes_.nodes > 1; }
  void agree(SessionRank& rank);
  std::shared_ptr<Save> first_save() const;
  void stand(int rank, bool is_first, PauseOptions options);
  void save(const std::shared_ptr<Save>& save, int rank);
  void end_save(Save& save, const std::string& directory, const std::exception_ptr& error);
  void copy_weights(SnapshotRequest& request, int rank);
  void set_progress(const Progress& progress);
  void change_state(SessionState state);
  void post(SessionEvent::Kind kind, std::string text = {});
  Outcome outcome_of(const std::exception_ptr& error) const;
  std::function<void()> answer_requests(const Outcome& outcome);
  void answer_what_is_left(const std::exception_ptr& error);
  void end(const std::exception_ptr& error) noexcept;
  void run_launch();
  void take_final_weights() noexcept;
  SessionRank& of_rank(int rank) { return *by_rank_[static_cast<std::size_t>(rank)]; }

  LaunchConfig config_;
  const Nodes nodes_;
  std::function<void(Accelerator&)> body_;
  SessionEvents& events_;
  Published<Progress>& published_;
  const EventPace pace_;
  std::stop_source cancel_;

  // Ranks are numbered as those of this process, from 0.
  std::optional<StepGate> gate_;                       // while there are ranks
  std::vector<std::unique_ptr<SessionRank>> by_rank_;  // each of its rank's thread
  std::vector<std::shared_ptr<torch::nn::Module>> final_models_;

  mutable std::mutex mutex_;  // guards all below, and whether there is a gate
  mutable std::condition_variable changed_;
  Progress progress_;
  std::vector<GateRequest> early_;  // asked for before there were ranks
  bool pause_is_asked_ = false, stop_is_asked_ = false;
  std::vector<std::shared_ptr<Save>> saves_;
  std::vector<std::shared_ptr<SnapshotRequest>> snapshots_;
  std::shared_ptr<const ModelSnapshot> final_weights_;
  std::exception_ptr host_error_, error_;
  std::string error_text_;
  bool ended_ = false, retired_ = false;
  int ranks_ = 0;  // threads
  // Of rank 0's thread.
  std::chrono::steady_clock::time_point step_posted_at_;
  std::int64_t step_posted_ = 0, epoch_posted_ = -1;
};

}  // namespace tandem
