// The accumulation window of one rank, which its models, optimizers, schedulers and loaders go by.
#pragma once

#include <cstdint>
#include <optional>

#include "tandem/nn/gradient_state.h"

namespace tandem::nn {

class Recording;

/// A GradientState as Tandem itself moves it on.
class AccumulationWindow : public GradientState {
 public:
  /// `sync_with_dataloader`: the end of a loader closes the window. `sub_steps`: into how many a micro-batch is cut,
  /// those of the logical shards that fall to the rank in exact mode, which follow each other.
  AccumulationWindow(int micro_batches, bool sync_with_dataloader, int sub_steps = 1)
      : GradientState(micro_batches, sync_with_dataloader), sub_steps_(sub_steps) {}

  // ---- micro-batches

  /// Begins a micro-batch: decides whether it closes the window (as Accelerate's `_do_sync`), which `close` makes it.
  /// Ranks with fewer steps than others decide like these, so that all windows close together.
  ///
  /// Of several sub-steps the first decides for all, and the last closes the window; `last` makes this one the last
  /// that the rank has. Throws ConfigError where a later one asks for more.
  void begin_micro_batch(bool close, bool last = false);

  /// Throws ConfigError where none may begin: within another one, and within the closure of an optimizer's step.
  void check_micro_batch() const;

  /// Ends it, and with it the window if that was its last.
  void end_micro_batch();

  /// Begins a window, without micro-batches and items so far.
  void begin();

  int sub_step() const { return sub_step_; }                  ///< which of them is, or comes next, from 0
  int sub_steps() const { return sub_steps_; }                ///< of a micro-batch
  bool is_last_micro_batch() const { return is_last_; }       ///< whether this one ends the window, after all sub-steps
  bool is_open() const { return length_ > 0; }                ///< whether it has micro-batches so far
  bool in_micro_batch() const { return inside_; }             ///< within accumulate()
  bool ends_step() const { return last_sub_step_; }           ///< whether this sub-step is the rank's last
  int length() const { return length_; }                      ///< micro-batches so far, this one included
  bool is_between() const { return !is_open() && !inside_; }  ///< whether one has ended and the next has not begun

  /// Micro-batches since the count last began anew, which decides when windows close; part of a checkpoint.
  std::int64_t count() const { return count_; }
  void set_count(std::int64_t count) { count_ = count; }  ///< when a training goes on

  /// What the window's gradients are to be multiplied by, because it ends early: the micro-batches before this one were
  /// divided by micro_batches().
  std::optional<double> correction() const;

  // ---- backward passes

  /// Throws ConfigError for a backward pass of a mean loss when the window has used sums.
  void check_mean() const;
  void use_mean() { has_mean_ = true; }  ///< notes one

  /// Throws ConfigError for a backward pass of a sum over `items` when the window has used means or has its mean over
  /// all items already, and when `items` is no number of items.
  void check_items(double items) const;

  /// Notes one, and returns the items of the window so far.
  double use_items(double items);

  double items() const { return items_.value_or(0); }  ///< of this rank in the window so far

  /// The gradients have become the mean over the window's items.
  void reduce_items() { items_are_reduced_ = true; }

  /// Whether the gradients are sums over items, which no backward pass has made a mean yet.
  bool has_sums() const { return items_ && !items_are_reduced_; }

  /// Forgets the mean losses of passes that were a window of their own.
  void forget_mean() { has_mean_ = false; }

  /// What a mean loss is divided by, so that the window's gradients add up to their mean.
  int divisor() const { return inside_ && is_last_ ? length_ : micro_batches_; }

  /// Whether a backward pass now is a window of its own: outside of accumulate(), but for those that add up in no_sync.
  bool pass_is_window() const { return !inside_ && syncs(); }

  /// Whether backward(loss_sum, items) now is the last of its window, and makes the gradients the mean over the items.
  bool pass_ends_sums() const { return closes_window_ && (inside_ || !no_sync_); }

  // ---- passes of logical shards, in exact mode

  /// A pass of the micro-batch has added to gradients that are still to be reduced.
  void note_pass() {
    has_passed_ = awaits_reduction_ = true;
    updated_ = false;
  }
  bool has_passed() const { return has_passed_; }              ///< whether one has
  void note_reduction() { awaits_reduction_ = false; }         ///< they are reduced
  bool awaits_reduction() const { return awaits_reduction_; }  ///< whether they are still to be, of the whole window
  void note_update() { updated_ = has_passed_; }               ///< a step or zero_grad was asked for
  bool is_updated() const { return updated_; }                 ///< whether one was, since the last pass

  /// Whether zero_grad acts now: it does as optimizers do, and before the first pass of any shard in the window's last
  /// micro-batch.
  bool drops_gradients() const { return acts() || (inside_ && is_last_ && !has_passed_); }

  // ---- scopes

  /// What scopes like no_sync() say of backward passes.
  struct Reduction {
    bool no_sync = false;  ///< they are not reduced
    bool trigger = false;  ///< they are, whatever the window
  };
  Reduction reduction() const { return {no_sync_, trigger_sync_}; }  ///< as things are
  void set_reduction(Reduction reduction);                           ///< until it is set again
  void train_alone(bool alone) { alone_ = alone; }                   ///< within local_sgd(), and no longer

  /// While alive, backward passes are those of one evaluation of an optimizer's closure: a window of one micro-batch,
  /// which stays open.
  class Evaluation {
   public:
    explicit Evaluation(AccumulationWindow& window);
    ~Evaluation();
    Evaluation(const Evaluation&) = delete;
    Evaluation& operator=(const Evaluation&) = delete;

   private:
    AccumulationWindow& window_;
    const bool inside_;
    const int length_;
  };
  bool in_closure() const { return in_closure_; }  ///< within an Evaluation

  /// What the last backward(loss_sum, items) of an evaluation was multiplied by.
  double loss_factor() const { return loss_factor_; }
  void set_loss_factor(double factor) { loss_factor_ = factor; }  ///< by that pass

  // ---- what else goes by it

  data::ActiveLoaders& loaders() { return loaders_; }              ///< that the rank iterates over
  const data::ActiveLoaders& loaders() const { return loaders_; }  ///< that the rank iterates over

  /// The recording of the compiled step that is being called; null outside of one.
  Recording* recording() const { return recording_; }
  void set_recording(Recording* recording) { recording_ = recording; }  ///< null: ends it

  /// That of a step whose work is recorded now, instead of done; null otherwise.
  Recording* records() const;

 private:
  void count_micro_batch(bool close);

  std::int64_t count_ = 0;
  int length_ = 0;
  int sub_steps_;
  int sub_step_ = 0;
  bool last_sub_step_ = true;
  bool has_passed_ = false, updated_ = false;  // in this micro-batch
  bool awaits_reduction_ = false;
  bool is_last_ = true;  // as closes_window_, of all sub-steps
  bool inside_ = false;
  bool has_mean_ = false;
  std::optional<double> items_;
  bool items_are_reduced_ = false;
  bool in_closure_ = false;
  double loss_factor_ = 1;
  Recording* recording_ = nullptr;
};

}  // namespace tandem::nn
