#include "tandem/optim/sharded_optimizer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "core/word_hash.h"
#include "nn/lent_storage.h"
#include "nn/memory.h"
#include "optim/optimizer_fields.h"
#include "optim/same_optimizers.h"
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

// Calls `visit(group, name, number)` for all options that are numbers or truth values.
template <class Visit>
void visit_options(torch::optim::Optimizer& optimizer, const Visit& visit) {
  with_class(optimizer, [&](auto its_class) {
    using Options = typename decltype(its_class)::Options;
    auto& groups = optimizer.param_groups();
    for (std::size_t g = 0; g < groups.size(); ++g)
      visit_fields(static_cast<Options&>(groups[g].options()), [&](const char* name, const auto& value) {
        if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(value)>>) {
          visit(g, name, static_cast<double>(value));
        } else {
          visit(g, name, std::get<0>(value));
          visit(g, name, std::get<1>(value));
        }
      });
  });
}

// Bits of what a rank says of the step that it is about to make; the others are hash_of_step.
constexpr std::uint64_t kLooksAnew = 1, kHasNewParts = 2, kHasOwnGradients = 4, kFlags = 7;

// Of the options, and of which parameters have a gradient.
std::uint64_t hash_of_step(torch::optim::Optimizer& optimizer) {
  WordHash hash;
  visit_options(optimizer,
                [&](std::size_t, const char*, double value) { hash.add(std::bit_cast<std::uint64_t>(value)); });
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& parameter : group.params()) hash.add(parameter.grad().defined() ? 1 : 0);
  return hash.value() & ~kFlags;
}

// Whether two CPU tensors, perhaps undefined or sparse, are the same bits.
bool same_numbers(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.layout() != b.layout() || a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  if (a.is_sparse()) {
    const at::Tensor mine = a.coalesce(), theirs = b.coalesce();
    return same_numbers(mine.indices(), theirs.indices()) && same_numbers(mine.values(), theirs.values());
  }
  const at::Tensor mine = a.contiguous(), theirs = b.contiguous();
  return mine.const_data_ptr() == theirs.const_data_ptr() ||
         std::memcmp(mine.const_data_ptr(), theirs.const_data_ptr(), mine.nbytes()) == 0;
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
  const bool has_new_parts = std::exchange(has_new_parts_, false);
  bool anew = has_new_parts || mode_ == Mode::unknown || has_local_gradients();
  if (lent())
    anew = anew || std::any_of(parts_.begin(), parts_.end(), [this](const Part& part) { return touched(part); });
  else
    anew = anew || std::any_of(with_models_.begin(), with_models_.end(),
                               [](const auto* model) { return model->weights().written(); });
  look_at_gradients();
  const bool own = std::find(gradient_is_own_.begin(), gradient_is_own_.end(), 1) != gradient_is_own_.end();
  const std::uint64_t hash = hash_of_step(inner_);
  std::uint64_t any = 0;
  bool same_hash = true;
  for (const std::uint64_t said : group_.meet(
           communicator_.rank(), record(),
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

// On GPUs it would cost a wait for the device.
void ShardedOptimizer::look_at_gradients() {
  gradient_is_own_.assign(parts_.size(), 0);
  if (!lent()) return;
  for (std::size_t i = 0; i < parts_.size(); ++i)
    gradient_is_own_[i] = parts_[i].model && parts_[i].parameter.grad().defined() &&
                          !parts_[i].model->shares_gradient(parts_[i].parameter);
}

bool ShardedOptimizer::options_differ() {
  struct Option {
    std::size_t group;
    const char* name;
    double value;
  };
  std::vector<Option> mine;
  visit_options(inner_, [&](std::size_t group, const char* name, double value) {
    mine.push_back({group, name, value});
  });
  std::string what;
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), &mine);
    const auto& main = call.payload<std::vector<Option>>(0);
    for (int peer = 1; peer < communicator_.world_size() && what.empty(); ++peer) {
      const auto& theirs = call.payload<std::vector<Option>>(peer);
      for (std::size_t k = 0; k < std::min(main.size(), theirs.size()) && what.empty(); ++k)
        if (std::bit_cast<std::uint64_t>(main[k].value) != std::bit_cast<std::uint64_t>(theirs[k].value))
          what = c10::str(main[k].name, " of group ", main[k].group, " of an optimizer is ", main[k].value,
                          " on rank 0 and ", theirs[k].value, " on rank ", peer);
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
    return (gradient_is_own_[i] || main.gradient_is_own_[i]) && !same_numbers(mine, theirs);
  });
  if (!found) return false;
  const auto [rank, part] = *found;
  warn("the gradient of " + name_of(parts_[part].parameter, models_) + " is another one on rank " +
       std::to_string(rank) +
       " than on rank 0: the program has written to it, or put another in its place, since the last reduction");
  return true;
}

// The first rank on which a part differs from rank 0's, and that part. The same on all ranks.
std::optional<std::pair<int, std::size_t>> ShardedOptimizer::first_difference(
    const std::function<bool(const ShardedOptimizer& main, std::size_t part)>& differs) const {
  std::uint64_t first = 0;  // counted from 1
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), this);
    const auto& main = call.payload<ShardedOptimizer>(0);
    for (std::size_t i = 0; i < parts_.size() && first == 0; ++i)
      if (differs(main, i)) first = i + 1;
  }
  const auto all = group_.meet(communicator_.rank(), record(), first);
  const auto other = std::find_if(all.begin(), all.end(), [](std::uint64_t part) { return part != 0; });
  if (other == all.end()) return std::nullopt;
  return std::pair{static_cast<int>(other - all.begin()), static_cast<std::size_t>(*other - 1)};
}

// From rank 0, once.
void ShardedOptimizer::warn(const std::string& what) {
  if (communicator_.rank() == 0 && warn_)
    std::exchange(warn_, {})(what + ". The ranks train on with different weights");
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
  if (any_rank(!given_up.empty())) warn_of_weights(given_up);
}

void ShardedOptimizer::warn_of_weights(const std::vector<std::size_t>& parts) {
  const auto found = first_difference([&](const ShardedOptimizer& main, std::size_t i) {
    return std::find(parts.begin(), parts.end(), i) != parts.end() &&
           !nn::same_bits(parts_[i].parameter, main.parts_[i].parameter);
  });
  if (!found) return;
  const auto [rank, part] = *found;
  warn("parameter " + name_of(parts_[part].parameter, models_) + " has other values on rank " + std::to_string(rank) +
       " than on rank 0: since prepare(), which gives all ranks rank 0's, or since the last step, it was written to "
       "outside of the optimizer");
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
    if (!updated.empty()) communicator_.broadcast(nn::memory_of(updated), owner);
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
