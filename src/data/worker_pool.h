#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "core/cancel_token.h"
#include "core/thread_team.h"
#include "core/work_scope.h"

namespace tandem {

class LentThreads;

namespace data {

/// Threads that work ahead for several consumers. Each consumer has a Queue, which the threads fill with the results
/// of its jobs, no further ahead than its depth. One thread is the pool's own, so it goes on whatever others do; oneTBB
/// lends the others while there is work, as many as the process's limit (tbb::global_control) allows.
class WorkerPool {
 public:
  /// What a job makes.
  using Result = std::shared_ptr<void>;

  /// A piece of work, done by one of the threads.
  using Job = std::function<Result()>;

  /// For `threads` >= 1 threads, which are named "`name` 0", … while they work. Those that have to begin with
  /// `on_start(index)` are all the pool's own: lent ones come and go. `token` outlives the pool.
  WorkerPool(int threads, std::string name, CancelToken& token, std::function<void(int)> on_start = {});

  /// Ends and joins the threads, and gives back lent ones; a job that runs is finished first. All queues are gone by
  /// then.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// The jobs and results of one consumer.
  class Queue {
   public:
    /// `next` gives the next job, or nothing at the end. It is called on the pool's threads, one call at a time, and
    /// its jobs run at the same time as later calls. At most `depth` >= 1 results wait to be taken.
    Queue(std::shared_ptr<WorkerPool> pool, std::size_t depth, bool in_order, std::function<Job()> next);

    /// Draws no more jobs and waits for those that run.
    ~Queue();
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

    /// Waits for the next result: in the order of the jobs, or with in_order off whichever is there first. Null at the
    /// end. Rethrows what the job, or `next`, threw. Empty when `timeout` has passed. Throws Cancelled when the token
    /// fires.
    std::optional<Result> take(std::optional<std::chrono::nanoseconds> timeout = {});

    /// True when `take` would not wait.
    bool ready();

   private:
    friend class WorkerPool;
    struct Slot {
      bool done = false;
      Result result;
      std::exception_ptr error;
    };
    using Slots = std::deque<std::shared_ptr<Slot>>;

    bool has_room() const { return !drawing_ && !ended_ && slots_.size() < depth_; }
    Slots::iterator finished();

    const std::shared_ptr<WorkerPool> pool_;
    const std::size_t depth_;
    const bool in_order_;
    const std::function<Job()> next_;
    // Guarded by the pool's mutex.
    Slots slots_;  // of jobs that were drawn and whose results were not yet taken, in order
    bool drawing_ = false;
    bool ended_ = false;  // no more jobs are to be drawn
    int running_ = 0;
    std::condition_variable changed_;
    std::atomic<bool> gone_{false};  // relaxed: a hint for jobs that wait
  };

 private:
  void run();
  void help();
  void wake_one();
  Queue* queue_with_room();
  void work_for(Queue& queue, std::unique_lock<std::mutex>& lock);

  CancelToken& token_;
  std::mutex mutex_;  // guards all below, and the queues
  std::condition_variable work_;
  std::list<Queue*> queues_;  // the one to be served next comes first
  bool stopping_ = false;
  int sleeping_ = 0;  // threads of its own
  CancelToken::Subscription subscription_;
  std::unique_ptr<LentThreads> lent_;
  std::optional<ThreadTeam> team_;
};

}  // namespace data
}  // namespace tandem
