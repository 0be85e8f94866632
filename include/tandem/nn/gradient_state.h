#pragma once

#include <cstdint>
#include <optional>

#include "tandem/data/detail/active_loaders.h"

namespace tandem {

/// Where a rank stands in its accumulation window: Accelerator::gradient_state. Belongs to the rank's thread.
///
/// Three states are told apart. The window closes (`closes_window`). A backward pass is reduced (`reduces`): by itself
/// in the micro-batch that closes the window, but not within no_sync() and local_sgd(), and everywhere within
/// trigger_sync_in_backward(). Optimizers, schedulers, clipping and zero_grad act (`acts`) when the window closes, on
/// the gradients that there are, reduced or not.
class GradientState {
 public:
  /// Micro-batches of a full window: LaunchConfig::gradient_accumulation_steps.
  int micro_batches() const { return micro_batches_; }

  /// Whether this micro-batch closes its window; outside of accumulate(), whether a backward pass is a window.
  bool closes_window() const { return closes_window_; }

  /// Whether a backward pass is averaged over the ranks now.
  bool reduces() const { return !alone_ && syncs(); }

  /// Whether optimizers, schedulers, clipping and zero_grad act now.
  bool acts() const { return closes_window_; }

  /// Whether the rank trains on its own, within local_sgd().
  bool trains_alone() const { return alone_; }

  /// True in the last step of the innermost loader.
  bool end_of_dataloader() const;

  /// EpochPlan::remainder of the innermost loader, -1 outside of any.
  std::int64_t remainder() const;

 protected:
  /// \cond internals
  GradientState(int micro_batches, bool sync_with_dataloader)
      : micro_batches_(micro_batches), sync_with_dataloader_(sync_with_dataloader) {}

  // By itself, or because of trigger_sync_in_backward().
  bool syncs() const { return trigger_sync_ || (closes_window_ && !no_sync_); }

  int micro_batches_;            // of a full window
  bool sync_with_dataloader_;    // the end of a loader closes the window
  bool closes_window_ = true;    // true before the first micro-batch
  bool trigger_sync_ = false;    // within trigger_sync_in_backward()
  bool no_sync_ = false;         // within no_sync()
  bool alone_ = false;           // within local_sgd()
  data::ActiveLoaders loaders_;  // that the rank iterates over
  /// \endcond
};

}  // namespace tandem
