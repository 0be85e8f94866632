// Moved on by RankTraining::begin_micro_batch and end_micro_batch, which also do what else belongs to a window's end.
#include "nn/accumulation_window.h"

#include <cmath>
#include <string>

#include "nn/recording.h"
#include "tandem/core/error.h"
#include "tandem/data/detail/step_info.h"

namespace tandem {

bool GradientState::end_of_dataloader() const { return loaders_.current() && loaders_.current()->ends_epoch(); }

std::int64_t GradientState::remainder() const { return loaders_.current() ? loaders_.current()->remainder : -1; }

}  // namespace tandem

namespace tandem::nn {

void AccumulationWindow::check_micro_batch() const {
  if (in_closure_)
    throw ConfigError("accumulate() within the closure of step(closure); open it around the step instead");
  if (inside_)
    throw ConfigError(
        "accumulate() within accumulate(): a micro-batch is that of all prepared models; name them in one call, "
        "accumulate(a, b)");
}

void AccumulationWindow::begin_micro_batch(bool close, bool last) {
  if (sub_step_ == 0)
    count_micro_batch(close);
  else if (close && !is_last_)
    throw ConfigError("accumulate_and_close in logical shard " + std::to_string(sub_step_ + 1) + " of the " +
                      std::to_string(sub_steps_) +
                      " that this rank computes of a global batch, whose window stays open; in exact mode close it in "
                      "all of them alike");
  last_sub_step_ = last || sub_step_ + 1 == sub_steps_;
  closes_window_ = is_last_ && last_sub_step_;
  has_passed_ = updated_ = false;
  inside_ = true;
}

void AccumulationWindow::count_micro_batch(bool close) {
  const bool last_step = loaders_.current() && loaders_.current()->last_of_all;
  if (close || (sync_with_dataloader_ && last_step)) {
    count_ = 0;
    is_last_ = true;
  } else {
    count_ += 1;
    is_last_ = count_ % micro_batches_ == 0;
  }
  length_ += 1;
  if (length_ == 1) has_mean_ = false;  // of passes before it
}

void AccumulationWindow::end_micro_batch() {
  inside_ = false;
  sub_step_ = last_sub_step_ ? 0 : sub_step_ + 1;
  if (closes_window_) begin();
}

void AccumulationWindow::begin() {
  length_ = 0;
  has_mean_ = false;
  items_.reset();
  items_are_reduced_ = false;
}

std::optional<double> AccumulationWindow::correction() const {
  if (!is_last_ || length_ < 2 || length_ >= micro_batches_ || items_) return std::nullopt;
  return static_cast<double>(micro_batches_) / length_;
}

void AccumulationWindow::check_mean() const {
  if (items_) throw ConfigError("backward(loss) after backward(loss_sum, items) in one accumulation window");
}

void AccumulationWindow::check_items(double items) const {
  if (has_mean_) throw ConfigError("backward(loss_sum, items) after backward(loss) in one accumulation window");
  if (items_are_reduced_)
    throw ConfigError(
        "backward(loss_sum, items) twice in the micro-batch that closes a window; add the losses up first");
  if (!(items >= 0) || std::isinf(items))
    throw ConfigError("backward with " + std::to_string(items) + " items; use their number, 0 or more");
}

double AccumulationWindow::use_items(double items) {
  items_ = this->items() + items;
  return *items_;
}

void AccumulationWindow::set_reduction(Reduction reduction) {
  no_sync_ = reduction.no_sync;
  trigger_sync_ = reduction.trigger;
}

AccumulationWindow::Evaluation::Evaluation(AccumulationWindow& window)
    : window_(window), inside_(window.inside_), length_(window.length_) {
  window.begin();
  window.in_closure_ = window.inside_ = true;
  window.length_ = 1;
  window.loss_factor_ = 1;
}

AccumulationWindow::Evaluation::~Evaluation() {
  window_.begin();
  window_.in_closure_ = false;
  window_.inside_ = inside_;
  window_.length_ = length_;
}

Recording* AccumulationWindow::records() const { return recording_ && recording_->records() ? recording_ : nullptr; }

}  // namespace tandem::nn
