// What somebody who follows a launch sees of it, and does there.
#pragma once

#include <functional>

#include "comm/rank_group.h"
#include "tandem/runtime/launch.h"

namespace tandem {

class RankTraining;

class LaunchObserver {
 public:
  virtual ~LaunchObserver() = default;

  /// Before and after the life of the ranks' threads, on the launching one.
  virtual void before_ranks(comm::RankGroup& group) = 0;
  virtual void after_ranks() noexcept = 0;

  /// Before and after the body, on each rank's thread; `after_body` also when it throws.
  virtual void before_body(RankTraining& training) = 0;
  virtual void body_ended(RankTraining& training) = 0;  ///< well
  virtual void after_body(RankTraining& training) noexcept = 0;

  virtual void rank_ended() noexcept = 0;  ///< at the end of each rank's thread

  /// Whether ranks are held, so that others may wait for them for any time.
  virtual bool holds_ranks() const = 0;
};

/// `launch`; `observer` may be null.
void launch(const LaunchConfig& config, const std::function<void(Accelerator&)>& body, LaunchObserver* observer);

}  // namespace tandem
