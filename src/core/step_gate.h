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

#include "core/cancel_token.h"

namespace tandem {

/// Where somebody outside has all ranks of a launch stop between two steps, at the same place in their programs, to do
/// something there or to be held: how sessions pause (session_requests.cpp asks, session_rank.cpp passes the gate).
///
/// A rank passes the gate before each micro-batch and before each batch that it takes; when nothing is asked for, that
/// is a store and a load. Ranks agree on the place without a word: whoever asks closes the gate and then looks how far
/// the ranks are; all stop at the first place that none of them has reached. A place is so many windows closed, and
/// within the next one so many micro-batches begun, and batches taken.
class StepGate {
 public:
  /// Who is at the gate while a task is there.
  struct Standing {
    int first = 0;           ///< the lowest rank that stands at the gate
    int aside = 0,           ///< how many have stepped aside
        left = 0;            ///< how many have ended
    bool same_place = true;  ///< those at the gate have begun as many micro-batches, and taken as many batches since
  };

  /// Something that the ranks at the gate do there.
  struct Task {
    /// Asked of each rank first; unless all agree, the task is put off to a later place. Empty: all do.
    std::function<bool(int rank, const Standing&)> may_run{};

    /// Called by each rank that stands at the gate, on its thread, when all have agreed.
    std::function<void(int rank, const Standing&)> run{};
  };

  /// `waits(rank)`: whether a rank waits for others in a call. When ranks take different numbers of batches, some stand
  /// at the gate that the others wait for; they are let through to the next micro-batch.
  StepGate(int ranks, CancelToken& token, std::function<bool(int)> waits = {});
  ~StepGate();
  StepGate(const StepGate&) = delete;
  StepGate& operator=(const StepGate&) = delete;

  // ---- by ranks, each with its own number. Throw Cancelled when the token fires, and what a task throws.

  /// Before each micro-batch.
  void pass_micro_batch(int rank);

  /// Before each batch that the rank takes.
  void pass_batch(int rank);

  /// After each window of micro-batches, which all ranks close together, whatever their numbers of micro-batches in it.
  /// Throws nothing.
  void close_window(int rank) noexcept;

  /// The rank passes no more: it has ended. Throws nothing.
  void leave(int rank) noexcept;

  /// While it is aside, a rank changes nothing and only answers others, who do not wait for it at the gate. All ranks
  /// come back together, as at the same place.
  void step_aside(int rank);

  /// Ends it, once no task is there.
  void come_back(int rank);

  // ---- by any thread; none of them waits for a rank

  /// Has all ranks stop and run `task`, after those that were added before it.
  void add(Task task);

  /// Ranks that stand at the gate stay there (and run tasks), until `release`.
  void hold();
  void release();      ///< lets ranks that are held go on
  bool holds() const;  ///< whether ranks are to stay at the gate

 private:
  enum class Place { running, parked, aside, left };
  struct Rank;

  void pass(int rank, std::uint64_t position);
  void park(int rank, std::unique_lock<std::mutex>& lock);
  void take_part(int rank, std::unique_lock<std::mutex>& lock);
  void finish_task(std::unique_lock<std::mutex>& lock);
  void close();
  void decide();
  void begin_turn(bool runs);
  void open(std::uint64_t next);
  bool all_stand() const;
  bool are_waited_for() const;
  Standing standing() const;
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
  std::optional<Task> task_;  // that ranks are asked about, or run
  bool runs_ = false;         // they run it
  bool all_agree_ = true;     // so far
  std::uint64_t turn_ = 0;    // counts both
  int missing_ = 0;           // ranks that have not had their turn
  Standing standing_;         // meanwhile
  CancelToken::Subscription subscription_;
};

}  // namespace tandem
