// Where an optimizer's state is while its update is divided over ranks.
#include <algorithm>
#include <utility>

#include <ATen/Functions.h>

#include "optim/sharded_optimizer_parts.h"

namespace tandem::optim {

// An owner's state, for others to refer to.
struct ShardedOptimizer::Found {
  std::size_t part;
  std::unique_ptr<torch::optim::OptimizerParamState> state;
  std::vector<std::shared_ptr<nn::LentMemory>> memory;  // of its defined tensors, where it is lent
};

// What an update has made anew.
void ShardedOptimizer::lend_own_state() {
  for (UpdatePart& part : parts_) {
    if (part.owner != communicator_.rank()) continue;
    const auto found = inner_.state().find(part.key());
    std::size_t known = 0;
    if (found != inner_.state().end())
      visit_defined(*found->second, [&](at::Tensor& tensor) {
        if (known == part.state.size()) part.state.emplace_back();
        auto& lent = part.state[known++];
        if (!lent || !lent->holds(tensor) || !lent->untouched()) {
          lent.reset();
          lent = nn::lend(tensor);
        }
      });
    part.state.resize(known);
  }
}

// Of parameters of other ranks, this rank's state refers to theirs. All ranks have updated when it returns.
void ShardedOptimizer::refer_to_state() {
  if (lent()) lend_own_state();
  std::vector<Found> all;
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), step_record(), this);
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      if (parts_[i].owner < 0 || parts_[i].owner == communicator_.rank()) continue;
      const auto& owner = call.payload<ShardedOptimizer>(parts_[i].owner);
      const auto found = owner.inner_.state().find(owner.parts_[i].key());
      if (found == owner.inner_.state().end()) continue;
      Found& mine = all.emplace_back(Found{i, found->second->clone(), {}});
      for (const auto& state : owner.parts_[i].state) mine.memory.push_back(state->memory());
    }
  }
  for (Found& found : all) refer(parts_[found.part], found);
}

void ShardedOptimizer::refer(UpdatePart& part, Found& found) {
  std::vector<at::Tensor> before;
  if (const auto old = inner_.state().find(part.key()); lent() && old != inner_.state().end()) {
    visit_defined(*old->second, [&](at::Tensor& tensor) { before.push_back(tensor); });
    inner_.state().erase(old);  // or what is not referred to any more would be copied
  }
  if (lent()) {
    std::size_t known = 0;
    before.resize(found.memory.size());
    part.state.resize(found.memory.size());
    visit_defined(*found.state, [&](at::Tensor& tensor) {
      auto& lent = part.state[known];
      at::Tensor& mine = before[known];
      const bool as_it_was =
          lent && mine.defined() && lent->holds(mine) && lent->untouched() && lent->memory() == found.memory[known];
      if (!as_it_was) {
        mine.reset();
        lent.reset();
        mine = nn::tensor_over(found.memory[known], tensor, lent);
      }
      tensor = std::move(mine);
      known += 1;
    });
  }
  inner_.state()[part.key()] = std::move(found.state);
}

// The part's state gets memory of its own, if it refers to another rank's.
void ShardedOptimizer::own_state(UpdatePart& part) {
  part.state.clear();
  const auto found = inner_.state().find(part.key());
  if (lent() || part.owner < 0 || part.owner == communicator_.rank() || found == inner_.state().end()) return;
  // LibTorch's clone() of a state copies the references.
  visit_defined(*found->second, [&](at::Tensor& tensor) { tensor = tensor.clone(); });
}

void ShardedOptimizer::load(const std::function<void(const std::function<bool(const at::Tensor&)>&)>& load) {
  // Of other classes nobody knows which tensors a copy of the state would share.
  if (mode_ == Mode::paused || mode_ == Mode::whole || !classes_may_be_divided()) return load({});
  list_parts();
  decide();
  if (mode_ == Mode::whole) return load({});
  load([this](const at::Tensor& parameter) {
    const auto part = std::find_if(parts_.begin(), parts_.end(),
                                   [&](const UpdatePart& known) { return known.parameter.is_same(parameter); });
    return part == parts_.end() || part->owner == kEachRank || part->owner == communicator_.rank();
  });
  refer_to_state();
}

void ShardedOptimizer::pause() {
  for (UpdatePart& part : parts_) {
    own_state(part);
    if (part.owner != kEachRank) part.owner = kNobodyYet;
  }
  any_rank(false);  // all have their copies before anybody writes
  if (mode_ != Mode::whole) mode_ = Mode::paused;
}

void ShardedOptimizer::resume() {
  if (mode_ == Mode::paused) mode_ = Mode::unknown;
}

}  // namespace tandem::optim
