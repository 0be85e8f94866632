#include "tandem/optim/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

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

SchedulerState Scheduler::state() const { return {.values = {{"last_epoch", last_epoch_}, {"_last_lr", last_lr()}}}; }

void Scheduler::load_state(const SchedulerState& state) {
  const auto last_epoch = state.get<std::int64_t>("last_epoch");
  set_lrs(get_by_group(state, "_last_lr", last_lr().size()));
  last_epoch_ = last_epoch;
}

std::map<std::string, double> Scheduler::group_values(std::size_t) const { return {}; }

SchedulerState Scheduler::with_own_rates(SchedulerState state) const {
  const SchedulerState own = this->state();
  const auto known = state.values.find("_last_lr");
  if (known == state.values.end()) return state;  // load_state says so
  auto* const rates = std::get_if<std::vector<double>>(&known->second);
  if (!rates) return state;
  const bool by_updates = !own.schedulers.empty() || own.values.contains("base_lrs");
  if (!by_updates) {
    for (std::size_t i = 0; i < rates->size() && i < own.course.size(); ++i)
      (*rates)[i] = i < state.course.size() && state.course[i] > 0.0 ? (*rates)[i] * (own.course[i] / state.course[i])
                                                                     : own.get<std::vector<double>>("_last_lr")[i];
    state.course = own.course;
    return state;
  }
  if (state.values.contains("base_lrs") && own.values.contains("base_lrs"))
    state.values["base_lrs"] = own.values.at("base_lrs");
  if (!state.schedulers.empty()) state.schedulers = own.schedulers;
  // Unlike any rate: the schedule's own is wanted.
  std::fill(rates->begin(), rates->end(), std::numeric_limits<double>::quiet_NaN());
  state.course.clear();
  return state;
}

void LRScheduler::step() {
  last_epoch_ += 1;
  apply();
}

void LRScheduler::apply() {
  advance();
  if (last_epoch_ == 0) {
    course_ = base_lrs_;
    sets_first_ = true;
  }
  std::vector<double> lrs = last_lr();
  for (std::size_t i = 0; i < lrs.size(); ++i) {
    const double before = std::exchange(lrs[i], lr_of(i, lrs[i]));
    course_[i] = course_[i] == before ? lrs[i] : lr_of(i, course_[i]);
  }
  set_lrs(lrs);
}

SchedulerState LRScheduler::state() const {
  SchedulerState state = Scheduler::state();
  state.values["base_lrs"] = base_lrs_;
  state.course = course_;
  return state;
}

std::map<std::string, double> LRScheduler::group_values(std::size_t group) const {
  return {{"initial_lr", base_lrs_.at(group)}};
}

void LRScheduler::take_base(const SchedulerState& state) {
  const auto& base = get_by_group(state, "base_lrs", base_lrs_.size());
  if (!has_own_base()) base_lrs_ = base;
}

// Update by update, because most schedules say a rate by the one before, and the bits are to be those of a training
// that did not stop.
void LRScheduler::go_to(std::int64_t last_epoch) {
  constexpr std::int64_t kMostUpdates = 1'000'000'000;
  if (last_epoch > kMostUpdates) throw CheckpointError("the scheduler's state has an impossible number of updates");
  rewind();
  course_ = base_lrs_;
  for (last_epoch_ = sets_first_ ? 0 : 1; last_epoch_ <= last_epoch; ++last_epoch_) {
    advance();
    for (std::size_t i = 0; i < course_.size(); ++i) course_[i] = lr_of(i, course_[i]);
  }
  last_epoch_ = last_epoch;
  if (last_epoch < 1) advance();
}

// What was set beside the schedule stays: all of it where the schedule is as it was, and its share where it is another.
std::vector<double> LRScheduler::rates_after(const SchedulerState& state) const {
  std::vector<double> rates = get_by_group(state, "_last_lr", course_.size());
  const auto agree = [](double a, double b, double base) {  // PyTorch's numbers have other last bits
    return std::abs(a - b) <= 1e-9 * std::max({std::abs(a), std::abs(b), std::abs(base)});
  };
  for (std::size_t i = 0; i < rates.size(); ++i) {
    const bool known = i < state.course.size();
    if (known ? state.course[i] == course_[i] : agree(rates[i], course_[i], base_lrs_[i])) continue;
    const bool alone = !known || rates[i] == state.course[i] || state.course[i] == 0.0;
    rates[i] = alone ? course_[i] : rates[i] * (course_[i] / state.course[i]);
  }
  return rates;
}

void LRScheduler::load_state(const SchedulerState& state) {
  const auto last_epoch = state.get<std::int64_t>("last_epoch");
  get_by_group(state, "_last_lr", last_lr().size());  // before anything is changed
  take_base(state);
  go_to(last_epoch);
  set_lrs(rates_after(state));
}

}  // namespace tandem::optim
