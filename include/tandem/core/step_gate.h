#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "tandem/core/cancel_token.h"

namespace tandem {

/// Where somebody outside has all ranks of a launch stop between two steps, at the same place in their programs, to do
/// something there or to be held.
///
/// A rank passes the gate before each micro-batch and before each batch that it takes; when nothing is asked for, that
/// is two stores and a load. Ranks agree on the place without a word: whoever asks closes the gate and then looks how
/// far the ranks are; all stop at the first place that none of them has reached.
class StepGate {
 public:
  /// The ranks that are not at the gate while a task runs.
  struct Standing {
    int aside = 0, left = 0;
  };

  /// Called by each rank that stands at the gate. False, on all ranks alike: not here, but at a later place.
  using Task = std::function<bool(int rank, Standing)>;

  /// `waits(rank)`: whether a rank waits for others in a call. When ranks take different numbers of batches, some stand
  /// at the gate that the others wait for; they are let through to the next micro-batch.
  StepGate(int ranks, CancelToken& token, std::function<bool(int)> waits = {});
  ~StepGate();
  StepGate(const StepGate&) = delete;
  StepGate& operator=(const StepGate&) = delete;

  // ---- by ranks, each with its own number. Throw Cancelled when the token fires, and what a task throws.

  void pass_micro_batch(int rank);
  void pass_batch(int rank);

  /// The rank passes no more: it has ended. Throws nothing.
  void leave(int rank) noexcept;

  /// While it is aside, a rank changes nothing and only answers others, who do not wait for it at the gate.
  void step_aside(int rank);
  void come_back(int rank);

  // ---- by any thread; none of them waits for a rank

  /// Has all ranks stop and run `task`, after those that were added before it.
  void add(Task task);

  /// Ranks that stand at the gate stay there (and run tasks), until `release`.
  void hold();
  void release();
  bool holds() const;

 private:
  enum class Place { running, parked, aside, left };
  struct Rank;

  void pass(int rank, std::uint64_t position);
  void park(int rank, std::unique_lock<std::mutex>& lock);
  void run_task(int rank, std::unique_lock<std::mutex>& lock);
  void close();
  void decide();
  void open(std::uint64_t next);
  bool all_stand() const;
  bool are_waited_for() const;
  int count(Place place) const;
  std::uint64_t furthest() const;
  void move(int rank, Place place);

  const int size_;
  CancelToken& token_;
  const std::function<bool(int)> waits_;
  std::unique_ptr<Rank[]> ranks_;
  std::atomic<bool> closed_{false};
  mutable std::mutex mutex_;  // guards all below, and where ranks are
  std::condition_variable changed_;
  std::uint64_t target_ = 0;    // the place to stop at while closed
  std::uint64_t openings_ = 0;  // how often the gate has let those through who stood there
  bool held_ = false;
  std::deque<Task> tasks_, later_;
  std::optional<Task> task_;  // that ranks are running
  std::uint64_t task_number_ = 0;
  int running_task_ = 0;  // ranks that have not run it yet
  Standing standing_;     // while it runs
  CancelToken::Subscription subscription_;
};

}  // namespace tandem
