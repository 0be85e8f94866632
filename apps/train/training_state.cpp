#include "training_state.h"

#include <cmath>
#include <variant>

namespace train {

bool BestFigure::take(const std::string& figure, double found, std::int64_t at, bool more_is_better) {
  if (name != figure) {
    *this = {};
    name = figure;
  }
  const bool is_better = value ? (more_is_better ? found > *value : found < *value) : !std::isnan(found);
  judged_since = is_better ? 0 : judged_since + 1;
  if (!is_better) return false;
  value = found;
  step = at;
  return true;
}

c10::IValue BestFigure::state_dict() const {
  c10::impl::GenericDict state(c10::AnyType::get(), c10::AnyType::get());
  state.insert("name", name);
  if (value) state.insert("value", *value);
  state.insert("step", step);
  state.insert("judged_since", judged_since);
  return state;
}

void BestFigure::load_state_dict(const c10::IValue& state) {
  if (!state.isGenericDict()) throw tandem::CheckpointError("its best figures are damaged");
  const auto dict = state.toGenericDict();
  const auto integer = [&](const char* key) {
    if (!dict.contains(key) || !dict.at(key).isInt()) throw tandem::CheckpointError("its best figures are damaged");
    return dict.at(key).toInt();
  };
  if (!dict.contains("name") || !dict.at("name").isString())
    throw tandem::CheckpointError("its best figures are damaged");
  name = dict.at("name").toStringRef();
  value.reset();
  if (dict.contains("value") && dict.at("value").isDouble()) value = dict.at("value").toDouble();
  step = integer("step");
  judged_since = integer("judged_since");
}

c10::IValue TrainingState::state_dict() const {
  c10::impl::GenericDict state(c10::AnyType::get(), c10::AnyType::get());
  c10::impl::GenericList losses(c10::AnyType::get()), batches(c10::AnyType::get());
  for (const double loss : epoch_losses) losses.push_back(loss);
  for (const std::int64_t number : epoch_batches) batches.push_back(number);
  state.insert("steps", steps);
  state.insert("epoch", epoch);
  state.insert("epoch_losses", losses);
  state.insert("epoch_batches", batches);
  c10::impl::GenericDict its_flags(c10::AnyType::get(), c10::AnyType::get());
  for (const auto& [name, value] : flags)
    std::visit([&, &name = name](const auto& its) { its_flags.insert(name, c10::IValue(its)); }, value);
  state.insert("flags", its_flags);
  c10::impl::GenericList names(c10::AnyType::get());
  for (const std::string& name : classes) names.push_back(name);
  state.insert("classes", names);
  state.insert("description", description);
  state.insert("data", data);
  state.insert("global_batch", global_batch);
  state.insert("judged_at", judged_at);
  state.insert("best", best.state_dict());
  state.insert("stops_by", stops_by.state_dict());
  return state;
}

namespace {

tandem::io::Config flags_in(const c10::IValue& dict) {
  tandem::io::Config flags;
  if (!dict.isGenericDict()) throw tandem::CheckpointError("its flags are no dict");
  for (const auto& item : dict.toGenericDict()) {
    if (!item.key().isString()) continue;
    const std::string& name = item.key().toStringRef();
    const c10::IValue& value = item.value();
    if (value.isBool()) flags.emplace_back(name, value.toBool());
    if (value.isInt()) flags.emplace_back(name, value.toInt());
    if (value.isDouble()) flags.emplace_back(name, value.toDouble());
    if (value.isString()) flags.emplace_back(name, value.toStringRef());
  }
  return flags;
}

}  // namespace

void TrainingState::load_state_dict(const c10::IValue& state) {
  const auto of = [&](const char* name) {
    if (!state.isGenericDict() || !state.toGenericDict().contains(name))
      throw tandem::CheckpointError(std::string("it is no checkpoint of train: it has no '") + name + "'");
    return state.toGenericDict().at(name);
  };
  const c10::IValue losses = of("epoch_losses"), batches = of("epoch_batches");
  if (!of("steps").isInt() || !of("epoch").isInt() || !losses.isList() || !batches.isList() ||
      losses.toListRef().size() != batches.toListRef().size())
    throw tandem::CheckpointError("its state of the training is damaged");
  flags = state.toGenericDict().contains("flags") ? flags_in(of("flags")) : tandem::io::Config();
  const auto text = [&](const char* name) {
    return state.toGenericDict().contains(name) && of(name).isString() ? of(name).toStringRef() : std::string();
  };
  classes.clear();
  description = text("description");
  data = text("data");
  global_batch = 0;
  if (state.toGenericDict().contains("global_batch") && of("global_batch").isInt())
    global_batch = of("global_batch").toInt();
  if (state.toGenericDict().contains("classes") && of("classes").isList())
    for (const c10::IValue& name : of("classes").toListRef()) classes.push_back(name.toStringRef());
  judged_at = 0;
  best = stops_by = {};
  if (state.toGenericDict().contains("judged_at")) {  // older checkpoints have none
    if (!of("judged_at").isInt()) throw tandem::CheckpointError("its state of the training is damaged");
    judged_at = of("judged_at").toInt();
    best.load_state_dict(of("best"));
    stops_by.load_state_dict(of("stops_by"));
  }
  steps = of("steps").toInt();
  epoch = of("epoch").toInt();
  epoch_losses.clear();
  epoch_batches.clear();
  for (const c10::IValue& loss : losses.toListRef()) epoch_losses.push_back(loss.toDouble());
  for (const c10::IValue& number : batches.toListRef()) epoch_batches.push_back(number.toInt());
}

}  // namespace train
