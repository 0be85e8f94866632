#pragma once

#include <cstdint>
#include <optional>

#include "tandem/data/loader_status.h"
#include "tandem/nn/recording.h"

namespace tandem {

/// Where a rank stands in its accumulation window, shared by its models, optimizers, schedulers and loaders.
///
/// Three states are told apart. The window closes (`closes_window`). A backward pass is reduced (`reduces`): by itself
/// in the micro-batch that closes the window, but not within no_sync() and local_sgd(), and everywhere within
/// trigger_sync_in_backward(). Optimizers, schedulers, clipping and zero_grad act (`acts`) when the window closes, on
/// the gradients that there are, reduced or not.
struct GradientState {
  int num_steps = 1;                   ///< micro-batches of a full window
  bool sync_with_dataloader = true;    ///< the end of a loader closes the window
  bool sync_gradients = true;          ///< this micro-batch closes its window; true before the first one
  bool trigger_sync = false;           ///< within trigger_sync_in_backward(): backward reduces, whatever the window
  bool no_sync = false;                ///< within no_sync(): backward does not reduce, whatever the window
  std::int64_t step = 0;               ///< micro-batches since the count last began anew
  int window_length = 0;               ///< micro-batches of the open window so far, this one included
  bool inside_window = false;          ///< within accumulate()
  bool local_sgd = false;              ///< within local_sgd(): gradients stay with their rank, optimizers step
  bool has_mean = false;               ///< the open window has used backward(loss)
  std::optional<double> items;         ///< of this rank in the open window, when it uses backward(loss_sum, items)
  bool items_reduced = false;          ///< the window's gradients are already the mean over its items
  data::ActiveLoaders loaders;         ///< that the rank iterates over
  nn::Recording* recording = nullptr;  ///< of the step that is being called, if it is to be recorded
  bool in_closure = false;             ///< within the closure of an optimizer's step(closure)
  double loss_factor = 1;              ///< what the last backward(loss_sum, items) of a closure was multiplied by

  /// Whether this micro-batch closes its window; outside of accumulate(), whether a backward pass is a window.
  bool closes_window() const { return sync_gradients; }

  /// Whether a backward pass is averaged over the ranks now.
  bool reduces() const { return !local_sgd && (trigger_sync || (sync_gradients && !no_sync)); }

  /// Whether optimizers, schedulers, clipping and zero_grad act now.
  bool acts() const { return sync_gradients; }

  /// Whether a backward pass now is a window of its own: outside of accumulate(), but for those that add up in no_sync.
  bool pass_is_window() const { return !inside_window && (trigger_sync || (sync_gradients && !no_sync)); }

  /// Whether backward(loss_sum, items) now is the last of its window, and makes the gradients the mean over the items.
  bool pass_ends_sums() const { return sync_gradients && (inside_window || !no_sync); }

  /// That of a step whose work is recorded now, instead of done.
  nn::Recording* records() const { return recording && recording->records() ? recording : nullptr; }

  /// What a mean loss is divided by, so that the window's gradients add up to their mean.
  int divisor() const { return inside_window && sync_gradients ? window_length : num_steps; }

  /// True in the last step of the innermost loader.
  bool end_of_dataloader() const { return loaders.current() && loaders.current()->last; }

  /// EpochPlan::remainder of the innermost loader, -1 outside of any.
  std::int64_t remainder() const { return loaders.current() ? loaders.current()->remainder : -1; }

  /// Begins a micro-batch: decides whether it closes the window (as Accelerate's `_do_sync`). Ranks with fewer steps
  /// than others decide like these, so that all windows close together.
  void begin_micro_batch(bool close) {
    const bool last_step = loaders.current() && loaders.current()->last_of_all;
    if (close || (sync_with_dataloader && last_step)) {
      step = 0;
      sync_gradients = true;
    } else {
      step += 1;
      sync_gradients = step % num_steps == 0;
    }
    window_length += 1;
    inside_window = true;
  }

  /// Ends it, and with it the window if that was its last.
  void end_micro_batch() {
    inside_window = false;
    if (sync_gradients) begin_window();
  }

  /// Begins a window, without micro-batches and items so far.
  void begin_window() {
    window_length = 0;
    has_mean = false;
    items.reset();
    items_reduced = false;
  }
};

}  // namespace tandem
