#include "tandem/optim/sequential_lr.h"

#include <algorithm>

#include "optim/check.h"
#include "tandem/optim/lr_schedulers.h"

namespace tandem::optim {
namespace {

void check(const SequentialLROptions& options) {
  if (options.schedulers.empty()) throw ConfigError("SequentialLR has no schedulers; use at least one");
  if (options.milestones.size() + 1 != options.schedulers.size())
    throw ConfigError("SequentialLR has " + std::to_string(options.milestones.size()) + " milestones for " +
                      std::to_string(options.schedulers.size()) + " schedulers; use one for each but the first");
  std::int64_t before = 0;
  for (const std::int64_t milestone : options.milestones) {
    require(milestone > before, "SequentialLR: milestone", milestone, "milestones above 0 that rise");
    before = milestone;
  }
}

}  // namespace

SequentialLR::SequentialLR(torch::optim::Optimizer& optimizer, Options options) : LRScheduler(optimizer) {
  check(options);
  begins_ = {0};
  begins_.insert(begins_.end(), options.milestones.begin(), options.milestones.end());
  for (const auto& make : options.schedulers) {
    schedulers_.push_back(make(optimizer));
    // What its constructor made of the rates is not the next one's base. A OneCycleLR has a base of its own, which is
    // then that of all, as in PyTorch.
    base_lrs_ = schedulers_.back()->base_lrs();
    set_lrs(base_lrs_);
    schedulers_.back()->last_epoch_ = -1;  // not begun; PyTorch's value
  }
  apply();
}

// The last one that has begun.
std::size_t SequentialLR::current() const {
  const auto milestones = begins_.begin() + 1;
  return static_cast<std::size_t>(std::upper_bound(milestones, begins_.end(), last_epoch()) - milestones);
}

void SequentialLR::advance() {
  const std::size_t now = current();
  schedulers_[now]->last_epoch_ = last_epoch() - begins_[now];
  schedulers_[now]->advance();
}

double SequentialLR::lr_of(std::size_t group, double lr) const {
  const LRScheduler& now = *schedulers_[current()];
  const bool begins = now.last_epoch() == 0 && last_epoch() > 0;
  return now.lr_of(group, begins ? now.base_lrs()[group] : lr);
}

SchedulerState SequentialLR::state() const {
  SchedulerState state = Scheduler::state();
  for (const auto& scheduler : schedulers_) {
    state.schedulers.push_back(scheduler->state());
    state.schedulers.back().course.clear();  // the course is that of all together
  }
  state.course = course_;
  return state;
}

std::map<std::string, double> SequentialLR::group_values(std::size_t group) const {
  auto values = LRScheduler::group_values(group);
  for (const auto& scheduler : schedulers_) values.merge(scheduler->group_values(group));
  return values;
}

bool SequentialLR::has_own_base() const {
  return std::any_of(schedulers_.begin(), schedulers_.end(), [](const auto& one) { return one->has_own_base(); });
}

// Of one that was made of other schedulers, as with a warm-up that it had not, the first one's base is that of all.
void SequentialLR::take_base(const SchedulerState& state) {
  const auto& theirs = state.schedulers;
  if (theirs.empty())
    throw CheckpointError("the scheduler's state is of a SequentialLR of 0 schedulers; this one has " +
                          std::to_string(schedulers_.size()));
  bool own = false;  // the base of a OneCycleLR is also that of those after it
  for (std::size_t i = 0; i < schedulers_.size(); ++i) {
    if (!own) schedulers_[i]->take_base(theirs[theirs.size() == schedulers_.size() ? i : 0]);
    own = own || schedulers_[i]->has_own_base();
  }
  base_lrs_ = schedulers_.back()->base_lrs();
}

// As the constructor leaves them.
void SequentialLR::rewind() {
  for (const auto& scheduler : schedulers_) {
    scheduler->rewind();
    scheduler->last_epoch_ = -1;
  }
  schedulers_.front()->last_epoch_ = 0;
}

SequentialLROptions with_warmup(std::int64_t steps, SchedulerFactory next) {
  require_count("with_warmup: steps", steps, 0);
  if (steps == 0) return {.schedulers = {std::move(next)}, .milestones = {}};
  const LinearLROptions growth{.start_factor = 1.0 / static_cast<double>(steps),
                               .total_iters = std::max<std::int64_t>(steps - 1, 1)};
  return {.schedulers = {stage<LinearLR>(growth), std::move(next)}, .milestones = {steps}};
}

}  // namespace tandem::optim
