#include "optim/same_optimizers.h"

#include <algorithm>
#include <optional>
#include <typeinfo>
#include <vector>

#include <c10/util/Type.h>

#include "comm/rank_group.h"
#include "nn/reducer_group.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"

namespace tandem::optim {
namespace {

struct Listed {
  std::string optimizer_class{};
  std::vector<std::vector<std::string>> groups{};  // names of parameters
};

std::string to_bytes(const Listed& listed) { return comm::pack(listed.optimizer_class, listed.groups); }

void from_bytes(std::string_view bytes, Listed& listed) { comm::unpack(bytes, listed.optimizer_class, listed.groups); }

std::string parameter_at(const Listed& listed, std::size_t group, std::size_t index) {
  const bool exists = group < listed.groups.size() && index < listed.groups[group].size();
  return exists ? listed.groups[group][index] : "nothing";
}

// What is different in the optimizer of `rank`, which is not 0.
std::optional<std::string> difference(int rank, const Listed& theirs, const Listed& main) {
  const auto differs = [rank](const std::string& what, const std::string& here, const std::string& there) {
    return "the optimizer differs between ranks: " + what + " is " + here + " on rank " + std::to_string(rank) +
           " and " + there + " on rank 0; make the same optimizer on every rank, with its parameters in one order";
  };
  if (theirs.optimizer_class != main.optimizer_class)
    return differs("its class", theirs.optimizer_class, main.optimizer_class);
  for (std::size_t g = 0; g < std::max(theirs.groups.size(), main.groups.size()); ++g) {
    const auto size = [g](const Listed& of) { return g < of.groups.size() ? of.groups[g].size() : 0; };
    for (std::size_t i = 0; i < std::max(size(theirs), size(main)); ++i)
      if (const auto here = parameter_at(theirs, g, i), there = parameter_at(main, g, i); here != there)
        return differs("parameter " + std::to_string(i) + " of group " + std::to_string(g), here, there);
  }
  return std::nullopt;
}

}  // namespace

std::string name_of(const at::Tensor& parameter, const nn::ReducerGroup& models) {
  std::size_t number = 0;
  for (const auto& model : models) {
    number += 1;
    if (!model->has(parameter)) continue;
    for (const auto& [name, known] : model->parameters())
      if (known.is_same(parameter)) return name + (models.size() > 1 ? " of model " + std::to_string(number) : "");
  }
  return {};
}

std::string describe_other_weights(const std::string& name, int rank) {
  return "parameter " + name + " has other values on rank " + std::to_string(rank) +
         " than on rank 0: since prepare(), which gives all ranks rank 0's, or since the last step, it was written to "
         "outside of the optimizer";
}

void check_same_optimizers(comm::RankGroup& group, int rank, const torch::optim::Optimizer& optimizer,
                           const nn::ReducerGroup& models) {
  Listed mine{c10::demangle(typeid(optimizer).name())};
  for (const auto& of_group : optimizer.param_groups()) {
    auto& names = mine.groups.emplace_back();
    for (const at::Tensor& parameter : of_group.params()) {
      const std::string name = name_of(parameter, models);
      names.push_back((name.empty() ? name : name + ' ') + c10::str(parameter.scalar_type(), parameter.sizes()));
    }
  }
  std::optional<std::string> problem;
  {
    const comm::detail::ObjectExchange all(group, rank, comm::detail::object_call<Listed>("prepare(optimizer)", false),
                                           &mine);
    for (int peer = 1; peer < group.world_size() && !problem; ++peer)
      problem = difference(peer, all.of<Listed>(peer), all.of<Listed>(0));
  }
  if (problem) throw ConfigError(*problem);
}

}  // namespace tandem::optim
