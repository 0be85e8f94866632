// What ranks compare before a divided step, and what they tell of a difference.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <ATen/Functions.h>

#include "core/word_hash.h"
#include "nn/tensor_layout.h"
#include "optim/same_optimizers.h"
#include "optim/sharded_optimizer_parts.h"
#include "tandem/comm/detail/objects.h"

namespace tandem::optim {
namespace {

// Calls `visit(group, name, number)` for all options that are numbers or truth values.
template <class Visit>
void visit_options(torch::optim::Optimizer& optimizer, const Visit& visit) {
  with_class(optimizer, [&](auto its_class) {
    using Options = typename decltype(its_class)::Options;
    auto& groups = optimizer.param_groups();
    for (std::size_t g = 0; g < groups.size(); ++g)
      visit_fields(static_cast<Options&>(groups[g].options()), [&](const char* name, const auto& value) {
        using Value = std::remove_cvref_t<decltype(value)>;
        if constexpr (std::is_arithmetic_v<Value> || std::is_enum_v<Value>) {
          visit(g, name, static_cast<double>(value));
        } else if constexpr (std::is_same_v<Value, AdafactorOptions::Eps>) {
          visit(g, name, std::get<0>(value).value_or(-1));
          visit(g, name, std::get<1>(value));
        } else {
          visit(g, name, std::get<0>(value));
          visit(g, name, std::get<1>(value));
        }
      });
  });
}

// Whether two CPU tensors, perhaps undefined or sparse, are the same bits.
bool same_gradients(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.layout() != b.layout() || a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  if (a.is_sparse()) {
    const at::Tensor mine = a.coalesce(), theirs = b.coalesce();
    return same_gradients(mine.indices(), theirs.indices()) && same_gradients(mine.values(), theirs.values());
  }
  const at::Tensor mine = a.contiguous(), theirs = b.contiguous();
  return mine.const_data_ptr() == theirs.const_data_ptr() ||
         std::memcmp(mine.const_data_ptr(), theirs.const_data_ptr(), mine.nbytes()) == 0;
}

}  // namespace

std::uint64_t hash_of_step(torch::optim::Optimizer& optimizer) {
  WordHash hash;
  visit_options(optimizer,
                [&](std::size_t, const char*, double value) { hash.add(std::bit_cast<std::uint64_t>(value)); });
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params()) hash.add(parameter.grad().defined() ? 1 : 0);
  return hash.value();
}

// On GPUs it would cost a wait for the device.
void ShardedOptimizer::look_at_gradients() {
  gradient_is_own_.assign(parts_.size(), 0);
  if (!lent()) return;
  for (std::size_t i = 0; i < parts_.size(); ++i)
    gradient_is_own_[i] = parts_[i].model && parts_[i].parameter.grad().defined() &&
                          !parts_[i].model->shares_gradient(parts_[i].parameter);
}

bool ShardedOptimizer::options_differ() {
  std::vector<std::string> names;  // the same on all ranks
  std::vector<double> mine;
  visit_options(inner_, [&](std::size_t group, const char* name, double value) {
    names.push_back(c10::str(name, " of group ", group));
    mine.push_back(value);
  });
  std::string what;
  {
    const comm::detail::ObjectExchange all(
        group_, communicator_.rank(), comm::detail::object_call<std::vector<double>>("optimizer.step", false), &mine);
    const auto& main = all.of<std::vector<double>>(0);
    for (int peer = 1; peer < communicator_.world_size() && what.empty(); ++peer) {
      const auto& theirs = all.of<std::vector<double>>(peer);
      for (std::size_t k = 0; k < std::min({names.size(), main.size(), theirs.size()}) && what.empty(); ++k)
        if (std::bit_cast<std::uint64_t>(main[k]) != std::bit_cast<std::uint64_t>(theirs[k]))
          what = c10::str(names[k], " of an optimizer is ", main[k], " on rank 0 and ", theirs[k], " on rank ", peer);
    }
  }
  if (what.empty()) return false;
  warn(what +
       ": options are to be the same on all ranks (step schedulers on all of them, and reduce what a "
       "ReduceLROnPlateau gets)");
  return true;
}

// Gradients that do not lie in the memory of all ranks, as those that the program has written to, may still be alike.
bool ShardedOptimizer::gradients_differ() {
  const auto found = first_difference([this](const ShardedOptimizer& main, std::size_t i) {
    const at::Tensor &mine = parts_[i].parameter.grad(), &theirs = main.parts_[i].parameter.grad();
    if (mine.defined() != theirs.defined()) return true;
    return (gradient_is_own_[i] || main.gradient_is_own_[i]) && !same_gradients(mine, theirs);
  });
  if (!found) return false;
  const auto [rank, part] = *found;
  warn("the gradient of " + name_of(parts_[part].parameter, models_) + " is another one on rank " +
       std::to_string(rank) +
       " than on rank 0: the program has written to it, or put another in its place, since the last reduction");
  return true;
}

// The first rank on which a part differs from that of its process's first rank, and that part. The same on all ranks.
std::optional<std::pair<int, std::size_t>> ShardedOptimizer::first_difference(
    const std::function<bool(const ShardedOptimizer& main, std::size_t part)>& differs) const {
  std::uint64_t first = 0;  // counted from 1
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), step_record(), this);
    const auto& main = call.payload<ShardedOptimizer>(group_.place().first_rank);
    for (std::size_t i = 0; i < parts_.size() && first == 0; ++i)
      if (differs(main, i)) first = i + 1;
  }
  const auto all = group_.meet(communicator_.rank(), step_record(), first);
  const auto other = std::find_if(all.begin(), all.end(), [](std::uint64_t part) { return part != 0; });
  if (other == all.end()) return std::nullopt;
  return std::pair{static_cast<int>(other - all.begin()), static_cast<std::size_t>(*other - 1)};
}

// From rank 0, once.
void ShardedOptimizer::warn(const std::string& what) {
  if (communicator_.rank() == 0 && warn_)
    std::exchange(warn_, {})(what + ". The ranks train on with different weights");
}

void ShardedOptimizer::warn_of_weights(const std::vector<std::size_t>& parts) {
  const auto found = first_difference([&](const ShardedOptimizer& main, std::size_t i) {
    return std::find(parts.begin(), parts.end(), i) != parts.end() &&
           !nn::same_bits(parts_[i].parameter, main.parts_[i].parameter);
  });
  if (!found) return;
  const auto [rank, part] = *found;
  if (!std::exchange(parts_[part].model->weights().told_of_difference, true))
    warn(describe_other_weights(name_of(parts_[part].parameter, models_), rank));
}

}  // namespace tandem::optim
