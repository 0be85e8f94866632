#include "tandem/optim/reduce_lr_on_plateau.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "optim/check.h"

namespace tandem::optim {

ReduceLROnPlateau::ReduceLROnPlateau(torch::optim::Optimizer& optimizer, Options options)
    : Scheduler(optimizer), options_(std::move(options)), first_lrs_(last_lr()) {
  require(options_.factor >= 0.0 && options_.factor < 1.0, "ReduceLROnPlateau: factor", options_.factor,
          "0 or more, below 1");
  require_count("ReduceLROnPlateau: patience", options_.patience, 0);
  require(options_.threshold >= 0.0, "ReduceLROnPlateau: threshold", options_.threshold, "0 or more");
  require_count("ReduceLROnPlateau: cooldown", options_.cooldown, 0);
  require_one_or_each("ReduceLROnPlateau: min_lr", options_.min_lr.size(), last_lr().size());
  for (const double lr : options_.min_lr) require(lr >= 0.0, "ReduceLROnPlateau: min_lr", lr, "0 or more");
  require(options_.eps >= 0.0, "ReduceLROnPlateau: eps", options_.eps, "0 or more");
  const double infinity = std::numeric_limits<double>::infinity();
  best_ = options_.mode == PlateauMode::min ? infinity : -infinity;
}

void ReduceLROnPlateau::step(double metric) {
  last_epoch_ += 1;
  if (is_better(metric)) {
    best_ = metric;
    num_bad_epochs_ = 0;
  } else {
    num_bad_epochs_ += 1;
  }
  if (cooldown_counter_ > 0) {
    cooldown_counter_ -= 1;
    num_bad_epochs_ = 0;
  }
  if (num_bad_epochs_ > options_.patience) {
    reduce();
    cooldown_counter_ = options_.cooldown;
    num_bad_epochs_ = 0;
  }
}

bool ReduceLROnPlateau::is_better(double metric) const {
  const bool relative = options_.threshold_mode == ThresholdMode::rel;
  if (options_.mode == PlateauMode::min)
    return metric < (relative ? best_ * (1.0 - options_.threshold) : best_ - options_.threshold);
  return metric > (relative ? best_ * (options_.threshold + 1.0) : best_ + options_.threshold);
}

void ReduceLROnPlateau::reduce() {
  std::vector<double> lrs = last_lr();
  for (std::size_t i = 0; i < lrs.size(); ++i) {
    const double reduced = std::max(lrs[i] * options_.factor, of_group(options_.min_lr, i));
    if (lrs[i] - reduced > options_.eps) lrs[i] = reduced;
  }
  set_lrs(lrs);
}

SchedulerState ReduceLROnPlateau::state() const {
  SchedulerState state = Scheduler::state();
  state.values["best"] = best_;
  state.values["num_bad_epochs"] = num_bad_epochs_;
  state.values["cooldown_counter"] = cooldown_counter_;
  state.course = first_lrs_;
  return state;
}

void ReduceLROnPlateau::load_state(const SchedulerState& state) {
  const auto best = state.get<double>("best");
  const auto bad = state.get<std::int64_t>("num_bad_epochs"), cooldown = state.get<std::int64_t>("cooldown_counter");
  Scheduler::load_state(state);
  if (state.course.size() == first_lrs_.size()) first_lrs_ = state.course;
  best_ = best;
  num_bad_epochs_ = bad;
  cooldown_counter_ = cooldown;
}

}  // namespace tandem::optim
