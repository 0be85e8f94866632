#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <typeinfo>
#include <vector>

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include "optim/own_optimizer.h"
#include "optim/own_optimizer_archives.h"
#include "optim/parameter_ids.h"
#include "tandem/core/error.h"

namespace tandem::optim {
namespace {

using torch::optim::Optimizer;
using torch::optim::OptimizerOptions;
using torch::optim::OptimizerParamState;
using torch::serialize::OutputArchive;
using State = std::unique_ptr<OptimizerParamState>;

bool is_library_class(const std::type_info& type) {
  using namespace torch::optim;
  return type == typeid(SGD) || type == typeid(Adam) || type == typeid(AdamW) || type == typeid(RMSprop) ||
         type == typeid(Adagrad) || type == typeid(LBFGS);
}

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

}  // namespace tandem::optim
