// States of schedulers and scalers as dicts, and back.
#include "optim/state_dict.h"

#include "optim/ivalue_dict.h"

namespace tandem::optim {

// ---- schedulers

namespace {

constexpr const char* kSchedulers = "_schedulers";
constexpr const char* kCourse = "_tandem_course";

IValue value_of(const SchedulerState::Value& value) {
  if (const auto* number = std::get_if<std::int64_t>(&value)) return *number;
  if (const auto* number = std::get_if<double>(&value)) return *number;
  List list = new_list();
  for (const double number : std::get<std::vector<double>>(value)) list.push_back(number);
  return list;
}

}  // namespace

IValue state_dict(const SchedulerState& state) {
  Dict dict = new_dict();
  for (const auto& [name, value] : state.values) dict.insert(name, value_of(value));
  if (const auto last = state.values.find("last_epoch"); last != state.values.end())
    dict.insert("_step_count", std::get<std::int64_t>(last->second) + 1);  // PyTorch's calls of step, its own included
  if (!state.course.empty()) dict.insert(kCourse, value_of(state.course));
  if (state.schedulers.empty()) return dict;
  List schedulers = new_list();
  for (const SchedulerState& one : state.schedulers) schedulers.push_back(state_dict(one));
  dict.insert(kSchedulers, schedulers);
  return dict;
}

namespace {

// `left`: how many more schedulers the file may have. Values can share parts, so that a small file can have endlessly
// many.
SchedulerState scheduler_state_of(const IValue& state, int& left) {
  if (left-- == 0) fail("the scheduler's state has more schedulers within schedulers than anybody needs");
  SchedulerState result;
  for (const auto& item : dict_of(state, "the scheduler's state")) {
    if (!item.key().isString()) continue;
    const std::string& name = item.key().toStringRef();
    const IValue& value = item.value();
    if (name == kSchedulers && value.isList()) {
      for (const IValue& one : value.toListRef()) result.schedulers.push_back(scheduler_state_of(one, left));
    } else if (value.isInt()) {
      result.values[name] = value.toInt();
    } else if (is_number(value)) {
      result.values[name] = number_of(value, name);
    } else if (value.isList()) {
      std::vector<double> numbers;
      for (const IValue& one : value.toListRef())
        if (is_number(one)) numbers.push_back(number_of(one, name));
      if (numbers.size() != value.toListRef().size()) continue;
      if (name == kCourse)
        result.course = numbers;
      else
        result.values[name] = numbers;
    }
  }
  return result;
}

}  // namespace

SchedulerState scheduler_state_of(const IValue& state) {
  int left = 1000;
  return scheduler_state_of(state, left);
}

// ---- scaler

IValue state_dict(const GradScalerState& state) {
  Dict dict = new_dict();
  dict.insert("scale", state.scale);
  dict.insert("growth_factor", state.growth_factor);
  dict.insert("backoff_factor", state.backoff_factor);
  dict.insert("growth_interval", state.growth_interval);
  dict.insert("_growth_tracker", state.growth_tracker);
  return dict;
}

GradScalerState grad_scaler_state_of(const IValue& state) {
  const std::string where = "the scaler's state";
  const Dict dict = dict_of(state, where);
  const auto number = [&](const char* name) { return number_of(field(dict, name, where), where + ": '" + name + "'"); };
  const auto count = [&](const char* name) { return count_of(field(dict, name, where), where + ": '" + name + "'"); };
  return {.scale = number("scale"),
          .growth_factor = number("growth_factor"),
          .backoff_factor = number("backoff_factor"),
          .growth_interval = count("growth_interval"),
          .growth_tracker = count("_growth_tracker")};
}

}  // namespace tandem::optim
