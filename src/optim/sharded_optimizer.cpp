#include "tandem/optim/sharded_optimizer.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "nn/lent_storage.h"
#include "nn/memory.h"
#include "optim/optimizer_fields.h"
#include "tandem/comm/describe_call.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::optim {
namespace {

using torch::optim::OptimizerParamState;

comm::CallRecord record() { return {.operation = comm::Operation::optimizer_step}; }

template <class Visit>
void visit_defined(OptimizerParamState& state, const Visit& visit) {
  visit_tensors(state, [&](at::Tensor& tensor) {
    if (tensor.defined()) visit(tensor);
  });
}

}  // namespace

struct ShardedOptimizer::Part {
  at::Tensor parameter;
  nn::GradientReducer* model = nullptr;
  int owner = kNobodyYet;
  // The state's defined tensors, on CPU ranks while the parameter has an owner.
  std::vector<std::unique_ptr<nn::LentStorage>> state{};

  void* key() const { return parameter.unsafeGetTensorImpl(); }
};

// An owner's state, for others to refer to.
struct ShardedOptimizer::Found {
  std::size_t part;
  std::unique_ptr<OptimizerParamState> state;
  std::vector<std::shared_ptr<nn::LentMemory>> memory;  // of its defined tensors, where it is lent
};

// While alive, the inner optimizer's groups have this rank's parameters only.
class ShardedOptimizer::OwnGroups {
 public:
  explicit OwnGroups(ShardedOptimizer& optimizer) : optimizer_(optimizer) { exchange(); }
  ~OwnGroups() { exchange(); }
  OwnGroups(const OwnGroups&) = delete;
  OwnGroups& operator=(const OwnGroups&) = delete;

 private:
  void exchange() {
    auto& groups = optimizer_.inner_.param_groups();
    for (std::size_t g = 0; g < groups.size(); ++g) groups[g].params().swap(optimizer_.own_[g]);
  }

  ShardedOptimizer& optimizer_;
};

ShardedOptimizer::ShardedOptimizer(torch::optim::Optimizer& inner, comm::Communicator& communicator,
                                   comm::RankGroup& group, nn::GradientReducers& models,
                                   std::function<void(const std::string&)> warn)
    : inner_(inner), communicator_(communicator), group_(group), models_(models), warn_(std::move(warn)) {}

ShardedOptimizer::~ShardedOptimizer() = default;

void ShardedOptimizer::step(const std::function<void()>& update) {
  if (mode_ == Mode::whole) return update();
  list_parts();
  if (mode_ != Mode::paused) {
    const trace::Range range(trace::Event::weight_exchange);
    decide();
  }
  if (mode_ == Mode::whole) return update();
  if (mode_ == Mode::paused) {
    const nn::LentStorage::Writing writing(storages_of([](const Part&) { return true; }));
    return update();
  }
  update_own(update);
  const trace::Range range(trace::Event::weight_exchange);
  give_weights();
  refer_to_state();
  for (nn::GradientReducer* model : with_models_) model->weights().accept();
}

// ---- who updates what

bool ShardedOptimizer::classes_may_be_divided() const {
  return with_class(inner_, [](auto) {});
}

void ShardedOptimizer::list_parts() {
  std::vector<at::Tensor> parameters;
  for (const auto& group : inner_.param_groups())
    parameters.insert(parameters.end(), group.params().begin(), group.params().end());
  const auto same = [](const at::Tensor& a, const Part& b) { return a.is_same(b.parameter); };
  if (std::equal(parameters.begin(), parameters.end(), parts_.begin(), parts_.end(), same)) return;
  has_new_parts_ = true;
  std::unordered_map<const void*, Part> known;
  for (Part& part : parts_) known.emplace(part.key(), std::move(part));
  parts_.clear();
  with_models_.clear();
  all_in_models_ = !parameters.empty();
  std::unordered_map<const void*, int> listed;
  for (const at::Tensor& parameter : parameters) {
    const auto before = known.find(parameter.unsafeGetTensorImpl());
    parts_.push_back(before == known.end() ? Part{.parameter = parameter} : std::move(before->second));
    if (before != known.end()) known.erase(before);
    Part& part = parts_.back();
    part.model = models_.find(parameter);
    all_in_models_ = all_in_models_ && part.model && ++listed[part.key()] == 1;
    if (part.model && std::find(with_models_.begin(), with_models_.end(), part.model) == with_models_.end())
      with_models_.push_back(part.model);
  }
}

bool ShardedOptimizer::any_rank(bool mine) const {
  const auto all = group_.meet(communicator_.rank(), record(), mine ? 1 : 0);
  return std::any_of(all.begin(), all.end(), [](std::uint64_t one) { return one != 0; });
}

// Whether something else than updates has happened to a parameter that is divided, or its state, on this rank.
bool ShardedOptimizer::touched(const Part& part) const {
  if (part.owner < 0) return false;
  const nn::SharedWeights& weights = part.model->weights();
  if (!weights.lent_storage(part.parameter) || weights.touched(part.parameter)) return true;
  const auto found = inner_.state().find(part.key());
  if (found == inner_.state().end()) return !part.state.empty();
  std::size_t known = 0;
  bool as_it_was = true;
  visit_defined(*found->second, [&](at::Tensor& tensor) {
    as_it_was =
        as_it_was && known < part.state.size() && part.state[known]->holds(tensor) && part.state[known]->untouched();
    known += 1;
  });
  return !as_it_was || known != part.state.size();
}

// Whether this rank is about to step on a gradient that no reduction has made the same on all ranks. Weights part then.
bool ShardedOptimizer::has_local_gradients() const {
  return std::any_of(parts_.begin(), parts_.end(),
                     [](const Part& part) { return part.model && part.model->has_local_gradient(part.parameter); });
}

// All ranks have come here, and none reads weights, when it returns.
void ShardedOptimizer::decide() {
  bool mine = std::exchange(has_new_parts_, false) || mode_ == Mode::unknown || has_local_gradients();
  if (lent())
    mine = mine || std::any_of(parts_.begin(), parts_.end(), [this](const Part& part) { return touched(part); });
  else
    mine = mine || std::any_of(with_models_.begin(), with_models_.end(),
                               [](const auto* model) { return model->weights().written(); });
  if (any_rank(mine)) settle();
}

void ShardedOptimizer::settle() {
  if (any_rank(!classes_may_be_divided() || !all_in_models_ || has_local_gradients())) return make_whole();
  if (lent()) {
    give_up_touched();
  } else {
    if (any_rank(storages_overlap())) return make_whole();
    for (const nn::GradientReducer* model : with_models_)
      if (!model->weights().equal_on_all_ranks()) return make_whole();
  }
  assign();
  if (std::all_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.owner == kEachRank; }))
    return make_whole();
  mode_ = Mode::divided;
  any_rank(false);  // all have their copies before anybody writes
}

// Several parameters on one storage, which may be the same memory.
bool ShardedOptimizer::storages_overlap() const {
  std::set<const void*> storages;
  return !std::all_of(parts_.begin(), parts_.end(), [&](const Part& part) {
    return storages.insert(part.parameter.storage().unsafeGetStorageImpl()).second;
  });
}

// What is not lent any more, or is now found to be touched on some rank, each rank updates by itself.
void ShardedOptimizer::give_up_touched() {
  std::vector<std::uint8_t> mine(parts_.size(), 0);
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const nn::SharedWeights& weights = parts_[i].model->weights();
    mine[i] = !weights.lent_storage(parts_[i].parameter) || weights.touched(parts_[i].parameter) || touched(parts_[i]);
  }
  std::vector<std::uint8_t> all(mine);
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), &mine);
    for (int peer = 0; peer < communicator_.world_size(); ++peer) {
      const auto& theirs = call.payload<std::vector<std::uint8_t>>(peer);
      for (std::size_t i = 0; i < all.size(); ++i) all[i] |= theirs[i];
    }
  }
  std::vector<std::size_t> given_up;
  for (std::size_t i = 0; i < parts_.size(); ++i)
    if (const auto storage = parts_[i].model->weights().lent_storage(parts_[i].parameter); all[i] && storage) {
      parts_[i].model->weights().give_up({*storage});
      given_up.push_back(i);
    }
  for (Part& part : parts_) {
    if (part.model->weights().lent_storage(part.parameter)) continue;
    own_state(part);
    part.owner = kEachRank;
  }
  if (any_rank(!given_up.empty())) warn_of_differences(given_up);
}

void ShardedOptimizer::warn_of_differences(const std::vector<std::size_t>& parts) {
  std::uint64_t first = 0;  // counted from 1
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), this);
    const auto& main = call.payload<ShardedOptimizer>(0);
    for (const std::size_t i : parts)
      if (first == 0 && !nn::same_bits(parts_[i].parameter, main.parts_[i].parameter)) first = i + 1;
  }
  const auto all = group_.meet(communicator_.rank(), record(), first);
  const auto other = std::find_if(all.begin(), all.end(), [](std::uint64_t part) { return part != 0; });
  if (other == all.end() || communicator_.rank() != 0 || !warn_) return;
  const Part& part = parts_[static_cast<std::size_t>(*other - 1)];
  std::string name;
  for (const auto& [known, parameter] : part.model->parameters())
    if (parameter.is_same(part.parameter)) name = known;
  std::exchange(warn_, {})("parameter " + name + " has other values on rank " + std::to_string(other - all.begin()) +
                           " than on rank 0: since prepare(), which gives all ranks rank 0's, or since the last step, "
                           "it was written to outside of the optimizer. The ranks train on with different weights");
}

// Gives the parameters of each storage, from the largest on, to the rank that has the fewest elements so far.
void ShardedOptimizer::assign() {
  struct Unit {
    std::vector<std::size_t> parts;
    std::int64_t elements = 0;
    int owner = kNobodyYet;
  };
  std::vector<Unit> units;
  std::map<std::pair<const void*, std::size_t>, std::size_t> known;  // by model and storage
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].owner == kEachRank) continue;
    const auto storage = parts_[i].model->weights().lent_storage(parts_[i].parameter);
    const auto [place, is_new] = known.try_emplace({parts_[i].model, storage.value_or(i)}, units.size());
    if (is_new) units.emplace_back();
    Unit& unit = units[place->second];
    unit.parts.push_back(i);
    unit.elements += parts_[i].parameter.numel();
    unit.owner = std::max(unit.owner, parts_[i].owner);
  }
  std::vector<std::int64_t> elements(static_cast<std::size_t>(communicator_.world_size()), 0);
  for (const Unit& unit : units)
    if (unit.owner >= 0) elements[static_cast<std::size_t>(unit.owner)] += unit.elements;
  std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.elements > b.elements; });
  for (Unit& unit : units) {
    if (unit.owner < 0) {
      const auto least = std::min_element(elements.begin(), elements.end());
      *least += unit.elements;
      unit.owner = static_cast<int>(least - elements.begin());
    }
    for (const std::size_t i : unit.parts) parts_[i].owner = unit.owner;
  }
  list_own();
}

void ShardedOptimizer::list_own() {
  const auto& groups = inner_.param_groups();
  own_.assign(groups.size(), {});
  std::size_t next = 0;
  for (std::size_t g = 0; g < groups.size(); ++g)
    for (const at::Tensor& parameter : groups[g].params()) {
      const int owner = parts_[next++].owner;
      if (owner == communicator_.rank() || owner == kEachRank) own_[g].push_back(parameter);
    }
}

void ShardedOptimizer::make_whole() {
  for (Part& part : parts_) {
    own_state(part);
    part.owner = kEachRank;
    if (!part.model) continue;
    if (const auto storage = part.model->weights().lent_storage(part.parameter))
      part.model->weights().give_up({*storage});
  }
  mode_ = Mode::whole;
  any_rank(false);  // all have their copies before anybody writes
}

// ---- an update

// The lent storages of these parameters and of their state.
std::vector<nn::LentStorage*> ShardedOptimizer::storages_of(const std::function<bool(const Part&)>& wanted) const {
  std::vector<nn::LentStorage*> storages;
  for (const Part& part : parts_) {
    if (!wanted(part)) continue;
    if (nn::LentStorage* storage = part.model ? part.model->weights().storage_of(part.parameter) : nullptr)
      storages.push_back(storage);
    for (const auto& state : part.state) storages.push_back(state.get());
  }
  return storages;
}

void ShardedOptimizer::update_own(const std::function<void()>& update) {
  const nn::LentStorage::Writing writing(
      storages_of([rank = communicator_.rank()](const Part& part) { return part.owner == rank; }));
  const OwnGroups own(*this);
  update();
}

// Where ranks have weights of their own, they get the new ones from those who have made them.
void ShardedOptimizer::give_weights() {
  const at::NoGradGuard no_grad;
  const int rank = communicator_.rank();
  // As if this rank had written them: a graph that has saved them is of no use any more.
  for (const Part& part : parts_)
    if (part.owner >= 0 && part.owner != rank && part.parameter.grad().defined())
      part.parameter.unsafeGetTensorImpl()->bump_version();
  const auto is_given = [](const Part& part) {
    return part.owner >= 0 && !part.model->weights().shares(part.parameter);
  };
  if (std::none_of(parts_.begin(), parts_.end(), is_given)) return;
  const nn::LentStorage::Writing writing(storages_of(is_given));
  for (int owner = 0; owner < communicator_.world_size(); ++owner) {
    std::vector<at::Tensor> updated;
    for (const Part& part : parts_)
      if (part.owner == owner && is_given(part)) updated.push_back(part.parameter);
    if (!updated.empty()) communicator_.broadcast(updated, owner);
  }
}

// ---- state

// What an update has made anew.
void ShardedOptimizer::lend_own_state() {
  for (Part& part : parts_) {
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
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), this);
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

void ShardedOptimizer::refer(Part& part, Found& found) {
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
void ShardedOptimizer::own_state(Part& part) {
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
                                   [&](const Part& known) { return known.parameter.is_same(parameter); });
    return part == parts_.end() || part->owner == kEachRank || part->owner == communicator_.rank();
  });
  refer_to_state();
}

void ShardedOptimizer::pause() {
  for (Part& part : parts_) {
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
