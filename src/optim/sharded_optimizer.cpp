#include "tandem/optim/sharded_optimizer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "backend/rank_memory.h"
#include "optim/optimizer_fields.h"
#include "tandem/comm/describe_call.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::optim {
namespace {

using torch::optim::OptimizerParamState;

comm::CallRecord record() { return {.operation = comm::Operation::optimizer_step}; }

// Gives the state of a parameter memory of its own. LibTorch's clone() copies the references.
void copy_tensors(OptimizerParamState& state) {
  visit_tensors(state, [](at::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.clone();
  });
}

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
                                   comm::RankGroup& group, nn::GradientReducers& models, Weights weights)
    : inner_(inner), communicator_(communicator), group_(group), models_(models), weights_(weights) {}

void ShardedOptimizer::step(const std::function<void()>& update) {
  if (mode_ != Mode::paused && mode_ != Mode::whole) {
    const trace::Range range(trace::Event::weight_exchange);
    partition();
    decide();
  }
  if (mode_ != Mode::divided) return update();
  {
    const OwnGroups own(*this);
    update();
  }
  const trace::Range range(trace::Event::weight_exchange);
  give_weights();
  refer_to_state();
  for (nn::GradientReducer* model : with_models_) model->weights().accept();
}

// The calling rank for what nobody owns.
int ShardedOptimizer::owner_of(const at::Tensor& parameter) const {
  const auto found = std::find_if(parameters_.begin(), parameters_.end(),
                                  [&](const at::Tensor& known) { return known.is_same(parameter); });
  return found == parameters_.end() ? communicator_.rank()
                                    : owners_[static_cast<std::size_t>(found - parameters_.begin())];
}

bool ShardedOptimizer::owns(const at::Tensor& parameter) const {
  return mode_ != Mode::divided || owner_of(parameter) == communicator_.rank();
}

bool ShardedOptimizer::classes_may_be_divided() const {
  return with_class(inner_, [](auto) {});
}

// Gives each parameter, from the largest on, to the rank that has the fewest elements so far.
void ShardedOptimizer::partition() {
  auto& groups = inner_.param_groups();
  std::vector<at::Tensor> parameters;
  for (const auto& group : groups) parameters.insert(parameters.end(), group.params().begin(), group.params().end());
  const auto same = [](const at::Tensor& a, const at::Tensor& b) { return a.is_same(b); };
  if (std::equal(parameters.begin(), parameters.end(), parameters_.begin(), parameters_.end(), same)) return;
  parameters_ = std::move(parameters);
  has_new_parts_ = true;

  std::vector<std::size_t> order(parameters_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return parameters_[a].numel() > parameters_[b].numel(); });
  std::vector<std::int64_t> elements(static_cast<std::size_t>(communicator_.world_size()), 0);
  owners_.assign(parameters_.size(), 0);
  for (const std::size_t i : order) {
    const auto least = std::min_element(elements.begin(), elements.end());
    *least += parameters_[i].numel();
    owners_[i] = static_cast<int>(least - elements.begin());
  }
  own_.assign(groups.size(), {});
  std::size_t next = 0;
  for (std::size_t g = 0; g < groups.size(); ++g)
    for (const at::Tensor& parameter : groups[g].params())
      if (owners_[next++] == communicator_.rank()) own_[g].push_back(parameter);
  find_models();
}

void ShardedOptimizer::find_models() {
  std::vector<const void*> missing;
  for (const at::Tensor& parameter : parameters_) missing.push_back(parameter.unsafeGetTensorImpl());
  std::sort(missing.begin(), missing.end());
  const bool repeated = std::adjacent_find(missing.begin(), missing.end()) != missing.end();
  with_models_.clear();
  for (const auto& model : models_) {
    const auto before = missing.size();
    for (const auto& [name, parameter] : model->parameters()) {
      const void* const impl = parameter.unsafeGetTensorImpl();
      const auto [first, last] = std::equal_range(missing.begin(), missing.end(), impl);
      missing.erase(first, last);
    }
    if (missing.size() < before) with_models_.push_back(model.get());
  }
  all_in_models_ = missing.empty() && !repeated && !parameters_.empty();
}

bool ShardedOptimizer::any_rank(bool mine) const {
  const auto all = group_.meet(communicator_.rank(), record(), mine ? 1 : 0);
  return std::any_of(all.begin(), all.end(), [](std::uint64_t one) { return one != 0; });
}

// Whether this rank is about to step on a gradient that no reduction has made the same on all ranks. Weights part then.
bool ShardedOptimizer::has_local_gradients() const {
  return std::any_of(with_models_.begin(), with_models_.end(),
                     [this](const nn::GradientReducer* model) { return model->has_local_gradient(parameters_); });
}

// All ranks have come here, and none reads weights, when it returns.
void ShardedOptimizer::decide() {
  const bool local = has_local_gradients();
  if (mode_ == Mode::unknown) {
    bool possible = !any_rank(!classes_may_be_divided() || !all_in_models_ || local);
    for (std::size_t i = 0; possible && i < with_models_.size(); ++i)
      possible = with_models_[i]->weights().equal_on_all_ranks();
    if (!possible) return make_whole(Mode::whole);
    mode_ = Mode::divided;
    return;
  }
  if (std::exchange(has_new_parts_, false) && any_rank(!all_in_models_)) return make_whole(Mode::whole);
  std::optional<std::string> written;
  for (const nn::GradientReducer* model : with_models_)
    if (!written) written = model->weights().written();
  if (any_rank(written.has_value() || local)) {
    if (any_rank(local)) return make_whole(Mode::whole);
    for (nn::GradientReducer* model : with_models_) {
      nn::SharedWeights& weights = model->weights();
      if (weights.shared())
        throw ConfigError(
            "all ranks share one copy of the weights, but " +
            (written ? "parameter " + *written + " was written to" : std::string("they were written to")) +
            " outside of the optimizer, by every rank; set LaunchConfig::sharding to Sharding::optimizer");
      if (!weights.equal_on_all_ranks()) return make_whole(Mode::whole);
    }
  } else if (weights_ == Weights::shared) {
    share_weights();
  }
}

void ShardedOptimizer::share_weights() {
  bool shares = false;
  for (nn::GradientReducer* model : with_models_) {
    if (model->weights().shared() || any_rank(!model->weights().shareable())) continue;
    model->weights().share();
    shares = true;
  }
  // The rank's own weights and the gradients of the first pass, which are not needed again.
  if (shares) free_rank_memory();
}

// Where ranks have weights of their own, they get the new ones from those who have made them.
void ShardedOptimizer::give_weights() {
  const at::NoGradGuard no_grad;
  if (std::all_of(with_models_.begin(), with_models_.end(), [](auto* model) { return model->weights().shared(); }))
    return;
  for (int owner = 0; owner < communicator_.world_size(); ++owner) {
    std::vector<at::Tensor> updated;
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      if (owners_[i] == owner) updated.push_back(parameters_[i]);
    if (!updated.empty()) communicator_.broadcast(updated, owner);
  }
}

// Of parameters of other ranks, this rank's state refers to theirs. All ranks have updated when it returns.
void ShardedOptimizer::refer_to_state() {
  std::vector<std::unique_ptr<OptimizerParamState>> states(parameters_.size());
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), this);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (owners_[i] == communicator_.rank()) continue;
      const auto& owner = call.payload<ShardedOptimizer>(owners_[i]);
      const auto& of_owner = owner.inner_.state();
      const auto found = of_owner.find(owner.parameters_[i].unsafeGetTensorImpl());
      if (found != of_owner.end()) states[i] = found->second->clone();
    }
  }
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    if (states[i]) inner_.state()[parameters_[i].unsafeGetTensorImpl()] = std::move(states[i]);
  refers_ = true;
}

void ShardedOptimizer::load(const std::function<void(const std::function<bool(const at::Tensor&)>&)>& load) {
  // Of other classes nobody knows which tensors a copy of the state would share.
  if (mode_ == Mode::paused || mode_ == Mode::whole || !classes_may_be_divided()) return load({});
  partition();
  load([this](const at::Tensor& parameter) { return owner_of(parameter) == communicator_.rank(); });
  refer_to_state();
}

void ShardedOptimizer::pause() {
  if (mode_ == Mode::divided || refers_) make_whole(Mode::paused);
  if (mode_ == Mode::unknown) mode_ = Mode::paused;
}

void ShardedOptimizer::resume() {
  if (mode_ == Mode::paused) mode_ = Mode::unknown;
}

void ShardedOptimizer::make_whole(Mode mode) {
  for (nn::GradientReducer* model : with_models_) {
    model->weights().unshare();
    if (mode == Mode::whole) model->weights().forbid();
  }
  if (std::exchange(refers_, false))
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const auto found = inner_.state().find(parameters_[i].unsafeGetTensorImpl());
      if (owners_[i] != communicator_.rank() && found != inner_.state().end()) copy_tensors(*found->second);
    }
  mode_ = mode;
  any_rank(false);  // all have their copies before anybody writes
}

}  // namespace tandem::optim
