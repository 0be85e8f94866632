#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include <ATen/Functions.h>

#include "optim/own_optimizer.h"
#include "optim/own_optimizer_archives.h"
#include "optim/parameter_ids.h"

namespace tandem::optim {
namespace {

using torch::optim::Optimizer;
using torch::optim::OptimizerOptions;
using torch::optim::OptimizerParamState;
using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;
using State = std::unique_ptr<OptimizerParamState>;
using States = std::vector<std::pair<void*, State>>;  // by parameter

std::optional<at::Device> device_of(const Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params()) return parameter.device();
  return std::nullopt;
}

// While alive, the optimizer has other tensors in the place of its parameters, with gradients, and no states.
class StandIns {
 public:
  explicit StandIns(Optimizer& optimizer) : optimizer_(optimizer) {
    for (const auto& group : optimizer.param_groups()) {
      parameters_.emplace_back();
      for (const at::Tensor& parameter : group.params()) {
        at::Tensor stand_in = at::ones_like(parameter, parameter.options().requires_grad(false));
        stand_in.set_requires_grad(parameter.requires_grad());
        stand_in.mutable_grad() = at::full_like(stand_in, 1e-3, stand_in.options().requires_grad(false));
        parameters_.back().push_back(stand_in);
      }
    }
    exchange();
  }

  ~StandIns() { exchange(); }
  StandIns(const StandIns&) = delete;
  StandIns& operator=(const StandIns&) = delete;

  // The states that were made since, by parameter.
  States take_states() {
    States states;
    const auto& groups = optimizer_.param_groups();
    for (std::size_t g = 0; g < parameters_.size(); ++g)
      for (std::size_t i = 0; i < std::min(parameters_[g].size(), groups[g].params().size()); ++i) {
        const auto found = optimizer_.state().find(groups[g].params()[i].unsafeGetTensorImpl());
        if (found != optimizer_.state().end())
          states.emplace_back(parameters_[g][i].unsafeGetTensorImpl(), std::move(found->second));
      }
    return states;
  }

 private:
  void exchange() {
    for (std::size_t g = 0; g < parameters_.size(); ++g) optimizer_.param_groups()[g].params().swap(parameters_[g]);
    std::swap(optimizer_.state(), states_);
  }

  Optimizer& optimizer_;
  std::vector<std::vector<at::Tensor>> parameters_;  // those that are not in their place
  std::remove_reference_t<decltype(std::declval<Optimizer&>().state())> states_;
};

// States of the class that the optimizer gives its parameters, made by a step of its own. Members are set back.
States make_states(Optimizer& optimizer) {
  OutputArchive archive;
  optimizer.save(archive);
  Dict before = new_dict();
  before.insert(kSaved, bytes_of(archive));
  const auto saved = archive_in(before, kSaved, std::nullopt);
  States states;
  std::string problem = "it has made none";
  try {
    StandIns stand_ins(optimizer);
    optimizer.step();
    states = stand_ins.take_states();
  } catch (const c10::Error& error) {
    problem = error.what_without_backtrace();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  if (!saved->keys().empty()) optimizer.load(*saved);
  if (states.empty())
    fail("the states of the optimizer " + class_name(typeid(optimizer)) +
         " could not be made in a step over tensors like its parameters (" + problem +
         "); make them in its constructor, or load them in its load()");
  return states;
}

// Empty states to read into.
class StateMaker {
 public:
  explicit StateMaker(Optimizer& optimizer) : optimizer_(optimizer) {}

  State make(const std::string& name, const at::Tensor& parameter) {
    for (const KnownState& one : known_states())
      if (one.name == name) return one.make();
    if (!name.empty()) fail(std::string(kWhole) + " is of a class " + name + ", which nobody knows");
    if (State copy = copy_of_its(parameter)) return copy;
    if (made_.empty()) made_ = make_states(optimizer_);
    for (auto& [its, state] : made_)
      if (its == parameter.unsafeGetTensorImpl() && state) return std::move(state);
    fail("the optimizer " + class_name(typeid(optimizer_)) + " has made no state for a parameter that had one");
  }

 private:
  State copy_of_its(const at::Tensor& parameter) const {
    const auto found = optimizer_.state().find(parameter.unsafeGetTensorImpl());
    if (found == optimizer_.state().end()) return nullptr;
    try {
      return found->second->clone();
    } catch (const c10::Error&) {
      return nullptr;
    }
  }

  Optimizer& optimizer_;
  States made_;
};

void read_state(OptimizerParamState& state, InputArchive& archive) {
  try {
    state.serialize(archive);
  } catch (const c10::Error& error) {
    fail("the state " + class_name(typeid(state)) +
         " of an optimizer cannot be loaded: " + error.what_without_backtrace());
  }
  if (!known_name(state).empty()) return;
  OutputArchive again;
  write_state(again, state);
  if (keys_of(again) != keys_of(archive))
    fail("the state " + class_name(typeid(state)) +
         " has other fields when it is loaded than it had when it was saved; have its serialize() set all of them");
}

// Ids by position: what a class of the program's makes of an order is not known.
void check_order(const Optimizer& optimizer, const IValue& groups, const ParameterNames& names) {
  const auto by_position = parameter_ids(optimizer, groups, {}), by_name = parameter_ids(optimizer, groups, names);
  if (by_position != by_name)
    fail("the parameters of " + class_name(typeid(optimizer)) +
         " are in another order than when it was saved; give them in that order");
}

States read_states(Optimizer& optimizer, const Dict& all, const LoadOptions& options) {
  const IValue groups = field(all, "param_groups", kWhole);
  check_order(optimizer, groups, options.names);
  const auto ids = parameter_ids(optimizer, groups, {});
  const auto archive = archive_in(all, kStates, device_of(optimizer));
  StateMaker maker(optimizer);
  States states;
  for (std::size_t g = 0; g < ids.size(); ++g)
    for (std::size_t i = 0; i < ids[g].size(); ++i) {
      const std::int64_t id = count_of(ids[g][i], std::string(kWhole) + ": an id of a parameter");
      InputArchive its;
      IValue name;
      if (!archive->try_read(key("state/", id), its)) continue;
      if (!archive->try_read(key("class/", id), name) || !name.isString())
        fail(std::string(kWhole) + " names no class");
      const at::Tensor& parameter = optimizer.param_groups()[g].params()[i];
      states.emplace_back(parameter.unsafeGetTensorImpl(), maker.make(name.toStringRef(), parameter));
      read_state(*states.back().second, its);
    }
  return states;
}

void read_options(Optimizer& optimizer, InputArchive& archive) {
  std::int64_t index = 0;
  for (auto& group : optimizer.param_groups()) {
    const std::int64_t g = index++;
    InputArchive its;
    IValue rate;
    if (archive.try_read(key("options/", g), its))
      group.options().serialize(its);
    else if (archive.try_read(key("lr/", g), rate) && rate.isDouble())
      group.options().set_lr(rate.toDouble());
  }
}

using AllOptions = std::vector<std::unique_ptr<OptimizerOptions>>;

AllOptions copy_options(const Optimizer& optimizer) {
  AllOptions options;
  for (const auto& group : optimizer.param_groups())
    options.push_back(group.has_options() ? group.options().clone() : nullptr);
  return options;
}

void set_options(Optimizer& optimizer, AllOptions options) {
  auto& groups = optimizer.param_groups();
  for (std::size_t g = 0; g < groups.size() && g < options.size(); ++g)
    if (options[g]) groups[g].set_options(std::move(options[g]));
}

}  // namespace

std::function<void()> prepare_own(Optimizer& optimizer, const Dict& all, const LoadOptions& options) {
  const bool is_older = !has(all, kStates);
  const auto device = device_of(optimizer);
  std::shared_ptr<InputArchive> saved, its_options;
  if (is_older || has(all, kSaved)) saved = archive_in(all, kSaved, device);
  const auto states = std::make_shared<States>();
  if (!is_older) {
    *states = read_states(optimizer, all, options);
    its_options = archive_in(all, kOptions, device);
  }
  return [&optimizer, saved, its_options, states, with_options = options.with_options] {
    AllOptions own = with_options ? AllOptions() : copy_options(optimizer);
    if (its_options) optimizer.state().clear();
    if (saved) optimizer.load(*saved);
    for (auto& [parameter, state] : *states) optimizer.state()[parameter] = std::move(state);
    if (!with_options)
      set_options(optimizer, std::move(own));
    else if (its_options)
      read_options(optimizer, *its_options);
  };
}

}  // namespace tandem::optim
