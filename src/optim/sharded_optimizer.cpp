#include "optim/sharded_optimizer.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "nn/lent_storage.h"
#include "nn/tensor_layout.h"
#include "optim/same_optimizers.h"
#include "optim/sharded_optimizer_parts.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::optim {
namespace {

// Bits of what a rank says of the step that it is about to make; the others are hash_of_step.
constexpr std::uint64_t kLooksAnew = 1, kHasNewParts = 2, kHasOwnGradients = 4, kFlags = 7;

}  // namespace

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
                                   comm::RankGroup& group, nn::ReducerGroup& models,
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
    const nn::LentStorage::Writing writing(storages_of([](const UpdatePart&) { return true; }));
    return update();
  }
  update_own(update);
  const trace::Range range(trace::Event::weight_exchange);
  give_weights();
  refer_to_state();
  for (nn::ModelReducer* model : with_models_) model->weights().accept();
}

// ---- who updates what

bool ShardedOptimizer::classes_may_be_divided() const {
  return with_class(inner_, [](auto) {});
}

void ShardedOptimizer::list_parts() {
  std::vector<at::Tensor> parameters;
  for (const auto& group : inner_.param_groups())
    parameters.insert(parameters.end(), group.params().begin(), group.params().end());
  const auto same = [](const at::Tensor& a, const UpdatePart& b) { return a.is_same(b.parameter); };
  if (std::equal(parameters.begin(), parameters.end(), parts_.begin(), parts_.end(), same)) return;
  has_new_parts_ = true;
  std::unordered_map<const void*, UpdatePart> known;
  for (UpdatePart& part : parts_) known.emplace(part.key(), std::move(part));
  parts_.clear();
  with_models_.clear();
  all_in_models_ = !parameters.empty();
  std::unordered_map<const void*, int> listed;
  for (const at::Tensor& parameter : parameters) {
    const auto before = known.find(parameter.unsafeGetTensorImpl());
    parts_.push_back(before == known.end() ? UpdatePart{.parameter = parameter} : std::move(before->second));
    if (before != known.end()) known.erase(before);
    UpdatePart& part = parts_.back();
    part.model = models_.find(parameter);
    all_in_models_ = all_in_models_ && part.model && ++listed[part.key()] == 1;
    if (part.model && std::find(with_models_.begin(), with_models_.end(), part.model) == with_models_.end())
      with_models_.push_back(part.model);
  }
}

bool ShardedOptimizer::any_rank(bool mine) const {
  const auto all = group_.meet(communicator_.rank(), step_record(), mine ? 1 : 0);
  return std::any_of(all.begin(), all.end(), [](std::uint64_t one) { return one != 0; });
}

// Whether something else than updates has happened to a parameter that is divided, or its state, on this rank.
bool ShardedOptimizer::touched(const UpdatePart& part) const {
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
  return std::any_of(parts_.begin(), parts_.end(), [](const UpdatePart& part) {
    return part.model && part.model->has_local_gradient(part.parameter);
  });
}

// All ranks have come here, and none reads weights, when it returns.
void ShardedOptimizer::decide() {
  const bool has_new_parts = std::exchange(has_new_parts_, false);
  bool anew = has_new_parts || mode_ == Mode::unknown || has_local_gradients();
  if (lent())
    anew = anew || std::any_of(parts_.begin(), parts_.end(), [this](const UpdatePart& part) { return touched(part); });
  else
    anew = anew || std::any_of(with_models_.begin(), with_models_.end(),
                               [](const auto* model) { return model->weights().written(); });
  look_at_gradients();
  const bool own = std::find(gradient_is_own_.begin(), gradient_is_own_.end(), 1) != gradient_is_own_.end();
  const std::uint64_t hash = hash_of_step(inner_) & ~kFlags;
  std::uint64_t any = 0;
  bool same_hash = true;
  for (const std::uint64_t said : group_.meet(
           communicator_.rank(), step_record(),
           hash | (anew ? kLooksAnew : 0) | (has_new_parts ? kHasNewParts : 0) | (own ? kHasOwnGradients : 0))) {
    any |= said & kFlags;
    same_hash = same_hash && (said & ~kFlags) == hash;
  }
  has_new_parts_ = (any & kHasNewParts) != 0;  // also where the check throws
  if (has_new_parts_) check_same_optimizers(group_, communicator_.rank(), inner_, models_);
  has_new_parts_ = false;
  if (any & kLooksAnew) settle();
  if (mode_ == Mode::whole) return;
  if ((!same_hash && options_differ()) || ((!same_hash || (any & kHasOwnGradients)) && gradients_differ()))
    make_whole();
}

void ShardedOptimizer::settle() {
  if (any_rank(!classes_may_be_divided() || !all_in_models_ || has_local_gradients())) return make_whole();
  if (lent()) {
    give_up_touched();
  } else {
    if (any_rank(storages_overlap())) return make_whole();
    for (const nn::ModelReducer* model : with_models_)
      if (model->weights().difference()) return make_whole();
  }
  assign();
  if (std::all_of(parts_.begin(), parts_.end(), [](const UpdatePart& part) { return part.owner == kEachRank; }))
    return make_whole();
  mode_ = Mode::divided;
  any_rank(false);  // all have their copies before anybody writes
}

// Several parameters on one storage, which may be the same memory.
bool ShardedOptimizer::storages_overlap() const {
  std::set<const void*> storages;
  return !std::all_of(parts_.begin(), parts_.end(), [&](const UpdatePart& part) {
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
    const comm::detail::ObjectExchange exchange(
        group_, communicator_.rank(), comm::detail::object_call<std::vector<std::uint8_t>>("optimizer.step", false),
        &mine);
    for (int peer = 0; peer < communicator_.world_size(); ++peer) {
      const auto& theirs = exchange.of<std::vector<std::uint8_t>>(peer);
      for (std::size_t i = 0; i < all.size(); ++i) all[i] |= theirs[i];
    }
  }
  std::vector<std::size_t> given_up;
  for (std::size_t i = 0; i < parts_.size(); ++i)
    if (const auto storage = parts_[i].model->weights().lent_storage(parts_[i].parameter); all[i] && storage) {
      parts_[i].model->weights().give_up({*storage});
      given_up.push_back(i);
    }
  for (UpdatePart& part : parts_) {
    if (part.model->weights().lent_storage(part.parameter)) continue;
    own_state(part);
    part.owner = kEachRank;
  }
  if (any_rank(!given_up.empty())) warn_of_weights(given_up);
}

// Gives the parameters of each storage, from the largest on, to the rank of this process that has the fewest elements
// so far.
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
  const comm::NodePlace& place = group_.place();
  std::vector<std::int64_t> elements(static_cast<std::size_t>(place.local_ranks), 0);
  for (const Unit& unit : units)
    if (unit.owner >= 0) elements[static_cast<std::size_t>(unit.owner - place.first_rank)] += unit.elements;
  std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.elements > b.elements; });
  for (Unit& unit : units) {
    if (unit.owner < 0) {
      const auto least = std::min_element(elements.begin(), elements.end());
      *least += unit.elements;
      unit.owner = place.first_rank + static_cast<int>(least - elements.begin());
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
  for (UpdatePart& part : parts_) {
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
std::vector<nn::LentStorage*> ShardedOptimizer::storages_of(
    const std::function<bool(const UpdatePart&)>& wanted) const {
  std::vector<nn::LentStorage*> storages;
  for (const UpdatePart& part : parts_) {
    if (!wanted(part)) continue;
    if (nn::LentStorage* storage = part.model ? part.model->weights().storage_of(part.parameter) : nullptr)
      storages.push_back(storage);
    for (const auto& state : part.state) storages.push_back(state.get());
  }
  return storages;
}

void ShardedOptimizer::update_own(const std::function<void()>& update) {
  const nn::LentStorage::Writing writing(
      storages_of([rank = communicator_.rank()](const UpdatePart& part) { return part.owner == rank; }));
  const OwnGroups own(*this);
  update();
}

// Where ranks have weights of their own, they get the new ones from those who have made them.
void ShardedOptimizer::give_weights() {
  const at::NoGradGuard no_grad;
  const int rank = communicator_.rank();
  // As if this rank had written them: a graph that has saved them is of no use any more.
  for (const UpdatePart& part : parts_)
    if (part.owner >= 0 && part.owner != rank && part.parameter.grad().defined())
      part.parameter.unsafeGetTensorImpl()->bump_version();
  const auto is_given = [](const UpdatePart& part) {
    return part.owner >= 0 && !part.model->weights().shares(part.parameter);
  };
  if (std::none_of(parts_.begin(), parts_.end(), is_given)) return;
  const nn::LentStorage::Writing writing(storages_of(is_given));
  if (lent()) {
    const comm::RankGroup::Call call(group_, rank, step_record(), this);
    for (std::size_t i = 0; i < parts_.size(); ++i)
      if (const int owner = parts_[i].owner; is_given(parts_[i]) && owner != rank)
        parts_[i].parameter.detach().copy_(call.payload<ShardedOptimizer>(owner).parts_[i].parameter.detach());
    return;
  }
  for (int owner = 0; owner < communicator_.world_size(); ++owner) {
    std::vector<at::Tensor> updated;
    for (const UpdatePart& part : parts_)
      if (part.owner == owner && is_given(part)) updated.push_back(part.parameter);
    if (!updated.empty()) communicator_.broadcast(nn::memory_of(updated), owner);
  }
}

}  // namespace tandem::optim
