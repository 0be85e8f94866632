#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "tandem/core/error.h"
#include "tandem/core/work_scope.h"
#include "tandem/data/step_source.h"
#include "tandem/data/worker_pool.h"

namespace tandem::data {

/// How a loader's steps are made.
struct ReadAheadOptions {
  std::size_t depth = 1;  ///< steps that may be ready before they are taken
  bool in_order = true;   ///< off: whichever step is ready first; the last of the epoch stays the last
  std::optional<std::chrono::milliseconds> timeout = {};  ///< longest wait for a step
};

/// Makes the steps of a source, ahead on the threads of a pool, or when they are asked for. Belongs to one thread.
template <class Batch>
class ReadAhead {
 public:
  /// Without a pool steps are made by the thread that takes them. `token` outlives it.
  ReadAhead(std::unique_ptr<StepSource<Batch>> source, std::shared_ptr<WorkerPool> pool, ReadAheadOptions options,
            const CancelToken& token)
      : source_(std::move(source)), pool_(std::move(pool)), options_(options), token_(token) {}

  /// Begins an epoch.
  void start(const EpochStart& start) {
    stop();
    source_->start(start);
    if (!pool_) return;
    queue_.emplace(pool_, options_.depth, options_.in_order, [source = source_.get()]() -> WorkerPool::Job {
      auto job = source->next();
      if (!job) return {};
      return [job = std::move(job)]() mutable -> WorkerPool::Result { return std::make_shared<Step<Batch>>(job()); };
    });
  }

  /// The next step; nothing at the end of the epoch. Throws what reading threw, and DataError after the timeout.
  std::optional<Step<Batch>> take() {
    if (!pool_) {
      const WorkScope scope(token_);
      auto job = source_->next();
      return job ? std::optional(job()) : std::nullopt;
    }
    auto step = take_from_queue();
    if (!step) return std::exchange(held_back_, std::nullopt);
    // Out of order the last step may come early. It keeps its place, since it may be shorter than the others.
    if (step->info.last && !held_back_ && !options_.in_order) {
      held_back_ = std::move(step);
      return take();
    }
    return step;
  }

  /// True when `take` would not wait for another thread. Without a pool never: steps are made when asked for.
  bool ready() { return queue_ && queue_->ready(); }

  /// Ends an epoch: what was made ahead is dropped, what is being made is waited for.
  void stop() {
    queue_.reset();
    held_back_.reset();
  }

  /// EpochPlan::remainder of the epoch; -1 while it is not known.
  std::int64_t remainder() const { return source_->remainder(); }

 private:
  std::optional<Step<Batch>> take_from_queue() {
    const auto result = queue_->take(options_.timeout);
    if (!result)
      throw DataError("no batch was ready within the loader's timeout of " + std::to_string(options_.timeout->count()) +
                      " ms; use more workers or a longer timeout");
    if (!*result) return std::nullopt;
    return std::move(*std::static_pointer_cast<Step<Batch>>(*result));
  }

  std::unique_ptr<StepSource<Batch>> source_;  // outlives the queue, whose jobs use it
  std::shared_ptr<WorkerPool> pool_;
  ReadAheadOptions options_;
  const CancelToken& token_;
  std::optional<WorkerPool::Queue> queue_;
  std::optional<Step<Batch>> held_back_;
};

}  // namespace tandem::data
