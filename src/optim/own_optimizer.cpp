#include "optim/own_optimizer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <c10/util/Type.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/serialize/archive.h>

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

constexpr const char* kWhole = "the optimizer's state";
constexpr const char* kSaved = "libtorch_archive";  // what its save() writes; in older checkpoints this is all
constexpr const char* kStates = "tandem_states";
constexpr const char* kOptions = "tandem_options";

std::string class_name(const std::type_info& type) { return c10::demangle(type.name()); }

// ---- archives as bytes

at::Tensor bytes_of(OutputArchive& archive) {
  std::ostringstream stream;
  archive.save_to(stream);
  const std::string bytes = stream.str();
  return at::from_blob(const_cast<char*>(bytes.data()), static_cast<std::int64_t>(bytes.size()), at::kByte).clone();
}

std::shared_ptr<InputArchive> archive_in(const Dict& all, const char* name, std::optional<at::Device> device) {
  const IValue bytes = field(all, name, "the optimizer's state, which is not PyTorch's for this class,");
  if (!bytes.isTensor()) fail(std::string(kWhole) + ": '" + name + "' is no tensor of bytes");
  const at::Tensor content = bytes.toTensor().contiguous();
  auto archive = std::make_shared<InputArchive>();
  try {
    archive->load_from(static_cast<const char*>(content.const_data_ptr()), content.nbytes(), device);
  } catch (const c10::Error& error) {
    fail(std::string(kWhole) + ": '" + name + "' is damaged: " + error.what_without_backtrace());
  }
  return archive;
}

std::vector<std::string> keys_of(InputArchive& archive) {
  std::vector<std::string> keys = archive.keys();
  std::sort(keys.begin(), keys.end());
  return keys;
}

std::vector<std::string> keys_of(OutputArchive& archive) {
  Dict all = new_dict();
  all.insert(kSaved, bytes_of(archive));
  return keys_of(*archive_in(all, kSaved, std::nullopt));
}

std::optional<at::Device> device_of(const Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params()) return parameter.device();
  return std::nullopt;
}

std::string key(const char* kind, std::int64_t id) { return kind + std::to_string(id); }

// ---- states of LibTorch's classes, which are made without the optimizer's help

struct KnownState {
  const std::type_info* type;
  std::string name;
  State (*make)();
  bool (*is_base_of)(const OptimizerParamState&);
  void (*write)(const OptimizerParamState&, OutputArchive&);  // as of this class
};

template <class Its>
KnownState known(const char* name) {
  return {.type = &typeid(Its),
          .name = name,
          .make = []() -> State { return std::make_unique<Its>(); },
          .is_base_of = [](const OptimizerParamState& state) { return dynamic_cast<const Its*>(&state) != nullptr; },
          .write = [](const OptimizerParamState& state,
                      OutputArchive& archive) { static_cast<const Its&>(state).Its::serialize(archive); }};
}

const std::array<KnownState, 6>& known_states() {
  using namespace torch::optim;
  static const std::array<KnownState, 6> all{
      known<SGDParamState>("SGDParamState"),         known<AdamParamState>("AdamParamState"),
      known<AdamWParamState>("AdamWParamState"),     known<RMSpropParamState>("RMSpropParamState"),
      known<AdagradParamState>("AdagradParamState"), known<LBFGSParamState>("LBFGSParamState")};
  return all;
}

// Empty for a class of the program's.
std::string known_name(const OptimizerParamState& state) {
  for (const KnownState& one : known_states())
    if (typeid(state) == *one.type) return one.name;
  return {};
}

bool is_library_class(const std::type_info& type) {
  using namespace torch::optim;
  return type == typeid(SGD) || type == typeid(Adam) || type == typeid(AdamW) || type == typeid(RMSprop) ||
         type == typeid(Adagrad) || type == typeid(LBFGS);
}

// ---- saving

// Whether what the compiler saw is the class itself, not a base of it.
bool is_seen(const Optimizer& optimizer, const OptimizerClass& its) {
  return its.type && *its.type == typeid(optimizer);
}

bool is_address(std::uintptr_t word) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  unsigned char in_memory = 0;
  return mincore(reinterpret_cast<void*>(word / page * page), 1, &in_memory) == 0 || errno != ENOMEM;
}

// Whether members are numbers that still are what the constructor made them, so that there is nothing to save: no byte
// has changed, and none is part of an address, behind which anything might have.
bool are_constants(const OptimizerClass& its) {
  const std::size_t bytes = its.first_members.size();
  if (std::memcmp(its.members, its.first_members.data(), bytes) != 0) return false;
  for (std::size_t at = 0; at + sizeof(std::uintptr_t) <= bytes; at += sizeof(std::uintptr_t)) {
    std::uintptr_t word = 0;
    std::memcpy(&word, its.members + at, sizeof word);
    if (is_address(word)) return false;
  }
  return true;
}

void check_members(const Optimizer& optimizer, const OptimizerClass& its) {
  if (!is_seen(optimizer, its) || its.first_members.empty() || are_constants(its)) return;
  throw ConfigError("the optimizer " + class_name(typeid(optimizer)) + " has members of " +
                    std::to_string(its.first_members.size()) +
                    " bytes that nothing saves: keep them in state(), or define save(torch::serialize::OutputArchive&) "
                    "const and load(torch::serialize::InputArchive&) for them in that class (empty ones where the "
                    "constructor alone decides them)");
}

template <class Its>
bool saves_as(const Optimizer& optimizer, const std::vector<std::string>& keys) {
  const auto* const its = dynamic_cast<const Its*>(&optimizer);
  if (!its) return false;
  OutputArchive archive;
  its->Its::save(archive);
  return keys_of(archive) == keys;
}

// What save() writes; undefined: nothing. LibTorch's own write states and options, which we write ourselves.
at::Tensor saved_by_itself(const Optimizer& optimizer, const OptimizerClass& its) {
  using namespace torch::optim;
  if (is_library_class(typeid(optimizer))) return {};
  const bool seen = is_seen(optimizer, its);
  if (seen && its.saved_by && is_library_class(*its.saved_by)) return {};
  OutputArchive archive;
  optimizer.save(archive);
  const auto keys = keys_of(archive);
  const bool by_library = saves_as<SGD>(optimizer, keys) || saves_as<Adam>(optimizer, keys) ||
                          saves_as<AdamW>(optimizer, keys) || saves_as<RMSprop>(optimizer, keys) ||
                          saves_as<Adagrad>(optimizer, keys) || saves_as<LBFGS>(optimizer, keys);
  return keys.empty() || (by_library && !seen) ? at::Tensor() : bytes_of(archive);
}

// A class seen through a base only, whose save() writes nothing of its own: it may have members all the same.
void check_unseen(const Optimizer& optimizer, const SaveOptions& options) {
  if (is_seen(optimizer, options.its_class) || is_library_class(typeid(optimizer)) || !options.its_class.type) return;
  const std::string its = "the optimizer " + class_name(typeid(optimizer)) + " was prepared as a " +
                          class_name(*options.its_class.type) + ", so that members of its own cannot be seen, ";
  if (optimizer.state().empty() && options.has_stepped)
    throw ConfigError(its +
                      "and neither its state() nor its save() has anything to write: keep members in state(), or "
                      "define save(torch::serialize::OutputArchive&) const and load(torch::serialize::InputArchive&) "
                      "for them; an optimizer without any is saved when it is prepared as the class that it is");
  if (!optimizer.state().empty() && options.warn)
    options.warn(its + "and its save() writes nothing of its own; only its state() and options are saved");
}

// A class that derives from one of LibTorch's to add fields has to write them too.
void check_writes_more(const OptimizerParamState& state, OutputArchive& written) {
  for (const KnownState& one : known_states()) {
    if (typeid(state) == *one.type || !one.is_base_of(state)) continue;
    OutputArchive base;
    one.write(state, base);
    if (keys_of(base) == keys_of(written))
      throw ConfigError("the state " + class_name(typeid(state)) + " writes no more than the " + one.name +
                        " that it derives from; define both serialize(torch::serialize::OutputArchive&) const and "
                        "serialize(torch::serialize::InputArchive&) for its fields");
  }
}

void write_state(OutputArchive& archive, const OptimizerParamState& state) {
  using torch::optim::LBFGSParamState;
  try {
    if (typeid(state) == typeid(LBFGSParamState)) {
      LBFGSParamState copy(static_cast<const LBFGSParamState&>(state));
      copy.al(std::nullopt);  // made anew by each iteration; LibTorch cannot write it before its history is full
      copy.serialize(archive);
    } else {
      state.serialize(archive);
    }
  } catch (const c10::Error& error) {
    throw ConfigError("the state " + class_name(typeid(state)) +
                      " of an optimizer cannot be saved; define both serialize(torch::serialize::OutputArchive&) const "
                      "and serialize(torch::serialize::InputArchive&): " +
                      error.what_without_backtrace());
  }
}

// Found out when there is still something to write down.
void check_can_be_read(const OptimizerParamState& state) {
  OutputArchive written;
  write_state(written, state);
  check_writes_more(state, written);
  Dict all = new_dict();
  all.insert(kStates, bytes_of(written));
  const auto archive = archive_in(all, kStates, std::nullopt);
  State copy;
  try {
    copy = state.clone();
  } catch (const c10::Error&) {
    return;  // has none; it is made by the optimizer
  }
  try {
    copy->serialize(*archive);
  } catch (const c10::Error& error) {
    throw ConfigError("the state " + class_name(typeid(state)) +
                      " of an optimizer can be saved, but not loaded; define "
                      "serialize(torch::serialize::InputArchive&): " +
                      error.what_without_backtrace());
  }
}

// False: such states cannot be written, but the optimizer's save() may have done it.
bool can_be_written(const Optimizer& optimizer, const OptimizerParamState& state, bool saves_itself,
                    const SaveOptions& options) {
  try {
    check_can_be_read(state);
    return true;
  } catch (const ConfigError& error) {
    if (!saves_itself) throw;
    if (options.warn)
      options.warn(std::string(error.what()) + "; what the save() of the optimizer " + class_name(typeid(optimizer)) +
                   " does not write of such states is not saved");
    return false;
  }
}

at::Tensor states_of(const Optimizer& optimizer, bool saves_itself, const SaveOptions& options) {
  OutputArchive archive;
  std::int64_t id = 0;
  std::size_t found_states = 0;
  std::optional<bool> writes_own;  // states of a class of the program's; not known before there is one
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params()) {
      const std::int64_t its = id++;
      const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
      if (found == optimizer.state().end()) continue;
      found_states += 1;
      const std::string name = known_name(*found->second);
      if (name.empty() && !writes_own) writes_own = can_be_written(optimizer, *found->second, saves_itself, options);
      if (name.empty() && !*writes_own) continue;
      OutputArchive state(archive.compilation_unit());
      write_state(state, *found->second);
      archive.write(key("state/", its), state);
      archive.write(key("class/", its), IValue(name));
    }
  if (found_states < optimizer.state().size() && !saves_itself)
    throw ConfigError(
        "the state() of the optimizer " + class_name(typeid(optimizer)) +
        " has entries that belong to no parameter of its groups, so that nothing says whose they are when "
        "they are loaded; define save(torch::serialize::OutputArchive&) const and "
        "load(torch::serialize::InputArchive&) for them in that class");
  return bytes_of(archive);
}

std::optional<double> rate_of(const OptimizerOptions& options) {
  try {
    return options.get_lr();
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

at::Tensor options_of(const Optimizer& optimizer, const SaveOptions& options) {
  OutputArchive archive;
  std::int64_t index = 0;
  for (const auto& group : optimizer.param_groups()) {
    const std::int64_t g = index++;
    if (!group.has_options()) continue;
    OutputArchive its(archive.compilation_unit());
    try {
      group.options().serialize(its);
      archive.write(key("options/", g), its);
    } catch (const c10::Error&) {
      if (const auto rate = rate_of(group.options())) archive.write(key("lr/", g), IValue(*rate));
      if (options.warn)
        options.warn("the options " + class_name(typeid(group.options())) +
                     " of an optimizer have no serialize(torch::serialize::OutputArchive&) const and serialize("
                     "torch::serialize::InputArchive&): but for the learning rate they are not saved, and a training "
                     "that goes on has the program's");
    }
  }
  return bytes_of(archive);
}

List groups_of(const Optimizer& optimizer, const ParameterNames& names) {
  List groups = new_list();
  std::int64_t id = 0;
  for (const auto& group : optimizer.param_groups()) {
    Dict dict = new_dict();
    List ids = new_list();
    for (std::size_t i = 0; i < group.params().size(); ++i) ids.push_back(id++);
    dict.insert("params", ids);
    const List its_names = names_of(group.params(), names);
    if (!its_names.empty()) dict.insert("param_names", its_names);
    groups.push_back(dict);
  }
  return groups;
}

}  // namespace

IValue dict_of_own(const Optimizer& optimizer, const SaveOptions& options) {
  check_members(optimizer, options.its_class);
  const at::Tensor saved = saved_by_itself(optimizer, options.its_class);
  if (!saved.defined()) check_unseen(optimizer, options);
  Dict all = new_dict();
  if (saved.defined()) all.insert(kSaved, saved);
  all.insert(kStates, states_of(optimizer, saved.defined(), options));
  all.insert(kOptions, options_of(optimizer, options));
  all.insert("param_groups", groups_of(optimizer, options.names));
  return all;
}

// ---- loading

namespace {

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
