#include "optim/parameter_ids.h"

#include <map>
#include <optional>
#include <string>
#include <utility>

namespace tandem::optim {
namespace {

// Where a name is in the file.
struct Place {
  std::size_t group;
  IValue id;
};
using Places = std::map<std::string, Place>;

std::string group_name(std::size_t group) { return "parameter group " + std::to_string(group); }

// The ids of each group, checked to be as many as the optimizer has parameters.
std::vector<std::vector<IValue>> stored_ids(const torch::optim::Optimizer& optimizer, const IValue& groups) {
  const std::string whole = "the optimizer's state";
  const auto& param_groups = optimizer.param_groups();
  if (!groups.isList()) fail(whole + "'s 'param_groups' is no list");
  if (groups.toListRef().size() != param_groups.size())
    fail(whole + " is of " + std::to_string(groups.toListRef().size()) + " parameter groups; this one has " +
         std::to_string(param_groups.size()));
  std::vector<std::vector<IValue>> ids;
  for (std::size_t g = 0; g < param_groups.size(); ++g) {
    const IValue its = field(dict_of(groups.toListRef()[g], group_name(g)), "params", group_name(g));
    const std::size_t count = param_groups[g].params().size();
    if (!its.isList() || its.toListRef().size() != count)
      fail(group_name(g) + " is of another number of parameters than this optimizer's " + std::to_string(count));
    ids.push_back(its.toListRef().vec());
  }
  return ids;
}

// Nothing when some have no name, or two the same.
std::optional<Places> stored_names(const IValue& groups, const std::vector<std::vector<IValue>>& ids) {
  Places places;
  for (std::size_t g = 0; g < ids.size(); ++g) {
    const Dict group = dict_of(groups.toListRef()[g], group_name(g));
    if (!has(group, "param_names")) return std::nullopt;
    const IValue names = field(group, "param_names", group_name(g));
    if (!names.isList() || names.toListRef().size() != ids[g].size()) return std::nullopt;
    for (std::size_t i = 0; i < ids[g].size(); ++i) {
      const IValue& name = names.toListRef()[i];
      if (!name.isString() || !places.emplace(name.toStringRef(), Place{g, ids[g][i]}).second) return std::nullopt;
    }
  }
  return places;
}

// Whether the names are of the kind that this program gives, not somebody's own.
bool know_any(const Places& places, const torch::optim::Optimizer& optimizer, const ParameterNames& names) {
  bool any = false;
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params()) {
      const std::string name = names(parameter);
      if (name.empty()) return false;
      any = any || places.contains(name);
    }
  return any;
}

}  // namespace

List names_of(const std::vector<at::Tensor>& parameters, const ParameterNames& names) {
  List list = new_list();
  for (const at::Tensor& parameter : parameters) {
    const std::string name = names ? names(parameter) : std::string();
    if (name.empty()) return new_list();
    list.push_back(name);
  }
  return list;
}

std::vector<std::vector<IValue>> parameter_ids(const torch::optim::Optimizer& optimizer, const IValue& groups,
                                               const ParameterNames& names) {
  auto ids = stored_ids(optimizer, groups);
  const auto places = names ? stored_names(groups, ids) : std::nullopt;
  if (!places || !know_any(*places, optimizer, names)) return ids;
  for (std::size_t g = 0; g < ids.size(); ++g)
    for (std::size_t i = 0; i < ids[g].size(); ++i) {
      const std::string name = names(optimizer.param_groups()[g].params()[i]);
      const auto found = places->find(name);
      if (found == places->end())
        fail(group_name(g) + " of this optimizer has parameter '" + name + "', which the saved one did not have");
      if (found->second.group != g)
        fail("parameter '" + name + "' was in " + group_name(found->second.group) +
             " of the saved optimizer, and is in " + group_name(g) + " of this one; make the groups as they were");
      ids[g][i] = found->second.id;
    }
  return ids;
}

}  // namespace tandem::optim
