#include "tandem/optim/scheduler.h"

#include "tandem/core/error.h"

namespace tandem::optim {

template <class T>
const T& SchedulerState::get(const std::string& name) const {
  const auto found = values.find(name);
  if (found == values.end()) throw CheckpointError("the scheduler's state has no '" + name + "'");
  const T* value = std::get_if<T>(&found->second);
  if (!value) throw CheckpointError("'" + name + "' of the scheduler's state is of another kind than expected");
  return *value;
}

template const std::int64_t& SchedulerState::get(const std::string& name) const;
template const double& SchedulerState::get(const std::string& name) const;
template const std::vector<double>& SchedulerState::get(const std::string& name) const;

namespace {

// A list that has to have one value a parameter group.
const std::vector<double>& get_by_group(const SchedulerState& state, const std::string& name, std::size_t groups) {
  const auto& values = state.get<std::vector<double>>(name);
  if (values.size() != groups)
    throw CheckpointError("'" + name + "' of the scheduler's state is for " + std::to_string(values.size()) +
                          " parameter groups; the optimizer has " + std::to_string(groups));
  return values;
}

}  // namespace

std::vector<double> Scheduler::last_lr() const {
  const auto& groups = optimizer_.param_groups();
  if (groups.size() != groups_)
    throw ConfigError("a scheduler made for " + std::to_string(groups_) + " parameter groups finds " +
                      std::to_string(groups.size()) + "; add all groups before making the scheduler");
  std::vector<double> lrs;
  for (const auto& group : groups) lrs.push_back(group.options().get_lr());
  return lrs;
}

void Scheduler::set_lrs(const std::vector<double>& lrs) {
  auto& groups = optimizer_.param_groups();
  for (std::size_t i = 0; i < groups.size(); ++i) groups[i].options().set_lr(lrs.at(i));
}

SchedulerState Scheduler::state() const {
  return {.values = {{"last_epoch", last_epoch_}, {"_last_lr", last_lr()}}, .schedulers = {}};
}

void Scheduler::load_state(const SchedulerState& state) {
  const auto last_epoch = state.get<std::int64_t>("last_epoch");
  set_lrs(get_by_group(state, "_last_lr", last_lr().size()));
  last_epoch_ = last_epoch;
}

std::map<std::string, double> Scheduler::group_values(std::size_t) const { return {}; }

void LRScheduler::step() {
  last_epoch_ += 1;
  apply();
}

void LRScheduler::apply() {
  advance();
  std::vector<double> lrs = last_lr();
  for (std::size_t i = 0; i < lrs.size(); ++i) lrs[i] = lr_of(i, lrs[i]);
  set_lrs(lrs);
}

SchedulerState LRScheduler::state() const {
  SchedulerState state = Scheduler::state();
  state.values["base_lrs"] = base_lrs_;
  return state;
}

std::map<std::string, double> LRScheduler::group_values(std::size_t group) const {
  return {{"initial_lr", base_lrs_.at(group)}};
}

void LRScheduler::load_state(const SchedulerState& state) {
  base_lrs_ = get_by_group(state, "base_lrs", base_lrs_.size());
  Scheduler::load_state(state);
  advance();
}

}  // namespace tandem::optim
