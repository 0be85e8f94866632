#include "training_state.h"

#include <variant>

namespace train {

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
  steps = of("steps").toInt();
  epoch = of("epoch").toInt();
  epoch_losses.clear();
  epoch_batches.clear();
  for (const c10::IValue& loss : losses.toListRef()) epoch_losses.push_back(loss.toDouble());
  for (const c10::IValue& number : batches.toListRef()) epoch_batches.push_back(number.toInt());
}

}  // namespace train
