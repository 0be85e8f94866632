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
  for (const auto& scheduler : schedulers_) state.schedulers.push_back(scheduler->state());
  return state;
}

std::map<std::string, double> SequentialLR::group_values(std::size_t group) const {
  auto values = LRScheduler::group_values(group);
  for (const auto& scheduler : schedulers_) values.merge(scheduler->group_values(group));
  return values;
}

void SequentialLR::load_state(const SchedulerState& state) {
  if (state.schedulers.size() != schedulers_.size())
    throw CheckpointError("the scheduler's state is of a SequentialLR of " + std::to_string(state.schedulers.size()) +
                          " schedulers; this one has " + std::to_string(schedulers_.size()));
  for (std::size_t i = 0; i < schedulers_.size(); ++i) schedulers_[i]->load_state(state.schedulers[i]);
  // After the schedulers: each has set the rates as if it were the current one.
  Scheduler::load_state(state);
  advance();
}

SequentialLROptions with_warmup(std::int64_t steps, SchedulerFactory next) {
  require_count("with_warmup: steps", steps, 0);
  if (steps == 0) return {.schedulers = {std::move(next)}, .milestones = {}};
  const LinearLROptions growth{.start_factor = 1.0 / static_cast<double>(steps),
                               .total_iters = std::max<std::int64_t>(steps - 1, 1)};
  return {.schedulers = {stage<LinearLR>(growth), std::move(next)}, .milestones = {steps}};
}

}  // namespace tandem::optim
