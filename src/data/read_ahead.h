#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "core/cancel_token.h"
#include "data/step_source.h"
#include "data/worker_pool.h"

namespace tandem::data {

/// How a loader's steps are made.
struct ReadAheadOptions {
  std::size_t depth = 1;  ///< steps that may be ready before they are taken
  bool in_order = true;   ///< off: whichever step is ready first; the last of the epoch stays the last
  std::optional<std::chrono::milliseconds> timeout = {};  ///< longest wait for a step
};

/// Makes the steps of a source, ahead on the threads of a pool, or when they are asked for. Belongs to one thread.
class ReadAhead {
 public:
  /// Without a pool steps are made by the thread that takes them. `token` outlives it.
  ReadAhead(std::unique_ptr<StepSource> source, std::shared_ptr<WorkerPool> pool, ReadAheadOptions options,
            const CancelToken& token);

  /// Begins an epoch.
  void start(const EpochStart& start);

  /// The next step; nothing at the end of the epoch. Throws what reading threw, and DataError after the timeout.
  std::optional<Step> take();

  /// True when `take` would not wait for another thread. Without a pool never: steps are made when asked for.
  bool ready() { return queue_ && queue_->ready(); }

  /// Ends an epoch: what was made ahead is dropped, what is being made is waited for.
  void stop();

  /// EpochPlan::remainder of the epoch; -1 while it is not known.
  std::int64_t remainder() const { return source_->remainder(); }

 private:
  std::optional<Step> take_from_queue();

  std::unique_ptr<StepSource> source_;  // outlives the queue, whose jobs use it
  std::shared_ptr<WorkerPool> pool_;
  ReadAheadOptions options_;
  const CancelToken& token_;
  std::optional<WorkerPool::Queue> queue_;
  std::optional<Step> held_back_;
};

}  // namespace tandem::data
