#pragma once

#include <optional>

#include "tandem/trace/range.h"

namespace tandem::nn {
class AccumulationWindow;
class Recording;
}  // namespace tandem::nn

namespace tandem {

class RankTraining;

/// While alive, one micro-batch of the accumulation window: what Accelerator::accumulate returns.
class [[nodiscard]] MicroBatch {
 public:
  /// Begins the micro-batch, which closes the window if `close` says so; the destructor ends it.
  MicroBatch(RankTraining& training, bool close);
  ~MicroBatch();
  MicroBatch(const MicroBatch&) = delete;
  MicroBatch& operator=(const MicroBatch&) = delete;

 private:
  RankTraining& training_;
  nn::Recording* const recording_;  // null: what the step does is done
  std::optional<trace::Range> range_;
};

/// While alive, says whether backward passes are reduced: what Accelerator::no_sync and trigger_sync_in_backward
/// return. Of several, the innermost counts.
///
/// Within no_sync nothing else changes: windows close, optimizers step on what each rank has, zero_grad acts. After
/// such a step ranks' weights differ, and updates are no longer divided over the ranks nor weights shared. With
/// backward(loss_sum, items) a window that closes within the scope has the mean over this rank's items; outside of
/// accumulate() the sums add up until the next backward outside of the scope.
class [[nodiscard]] ReductionScope {
 public:
  /// `reduces`: all passes are reduced; otherwise none. The destructor sets back what was before.
  ReductionScope(nn::AccumulationWindow& window, bool reduces);
  ~ReductionScope();
  ReductionScope(const ReductionScope&) = delete;
  ReductionScope& operator=(const ReductionScope&) = delete;

 private:
  nn::AccumulationWindow& window_;
  const bool no_sync_, trigger_;  // before
};

}  // namespace tandem
