// States of optimizers as dicts, and back.
#include <memory>
#include <tuple>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "optim/ivalue_dict.h"
#include "optim/optimizer_fields.h"
#include "optim/own_optimizer.h"
#include "optim/parameter_ids.h"
#include "optim/state_dict.h"

namespace tandem::optim {
namespace {

using torch::optim::Optimizer;
using torch::optim::OptimizerParamState;

// ---- writing

// Puts fields into a dict.
struct Putter {
  Dict dict = new_dict();
  void operator()(const char* name, double value) const { insert(name, value); }
  void operator()(const char* name, bool value) const { insert(name, value); }
  void operator()(const char* name, std::int64_t step) const {  // which PyTorch has as a tensor
    insert(name, at::scalar_tensor(static_cast<double>(step), at::kFloat));
  }
  void operator()(const char* name, const std::tuple<double, double>& betas) const {
    insert(name, c10::ivalue::Tuple::create({std::get<0>(betas), std::get<1>(betas)}));
  }
  void operator()(const char* name, const AdafactorOptions::Eps& eps) const {
    const auto& [first, second] = eps;
    insert(name, c10::ivalue::Tuple::create({first ? IValue(*first) : IValue(), IValue(second)}));
  }
  void operator()(const char* name, MuonRate rate) const {
    insert(name, std::string(rate == MuonRate::original ? "original" : "match_rms_adamw"));
  }
  void operator()(const char* name, const at::Tensor& tensor) const {
    if (tensor.defined()) insert(name, tensor);
  }
  void insert(const char* name, const IValue& value) const { Dict(dict).insert(name, value); }
};

// LibTorch's accessors of const objects give values; those of others give references, which visiting needs.
template <class T>
T& writable(const T& object) {
  return const_cast<T&>(object);
}

template <class Class>
IValue dict_of_class(const Optimizer& optimizer, const GroupValues& more, const ParameterNames& names) {
  Dict states = new_dict();
  List groups = new_list();
  std::int64_t id = 0;
  const auto& param_groups = optimizer.param_groups();
  for (std::size_t g = 0; g < param_groups.size(); ++g) {
    const Putter group;
    visit_fields(writable(static_cast<const typename Class::Options&>(param_groups[g].options())), group);
    for (const PythonField& only : Class::python_fields()) group.insert(only.name, only.value);
    if (g < more.size())
      for (const auto& [name, value] : more[g]) group.insert(name.c_str(), value);
    List ids = new_list();
    for (const at::Tensor& parameter : param_groups[g].params()) {
      ids.push_back(id);
      const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
      if (found != optimizer.state().end()) {
        const Putter state;
        visit_fields(writable(static_cast<const typename Class::State&>(*found->second)), state);
        if (!state.dict.empty()) states.insert(id, state.dict);
      }
      id += 1;
    }
    group.insert("params", ids);
    const List its_names = names_of(param_groups[g].params(), names);
    if (!its_names.empty()) group.insert("param_names", its_names);
    groups.push_back(group.dict);
  }
  Dict all = new_dict();
  all.insert("state", states);
  all.insert("param_groups", groups);
  return all;
}

}  // namespace

IValue state_dict(const Optimizer& optimizer, const GroupValues& more, const SaveOptions& options) {
  IValue dict;
  if (with_class(optimizer, [&](auto its) { dict = dict_of_class<decltype(its)>(optimizer, more, options.names); }))
    return dict;
  return dict_of_own(optimizer, options);
}

// ---- reading

namespace {

// The tensors without which a step would fail.
void require_tensor(const at::Tensor& tensor, const char* name, const std::string& where) {
  if (!tensor.defined()) fail(where + " has no '" + name + "'");
}

void check_complete(torch::optim::SGDParamState&, const torch::optim::SGDOptions&, const std::string&) {}

template <class State, class Options>
void check_adam(State& state, const Options& options, const std::string& where) {
  require_tensor(state.exp_avg(), "exp_avg", where);
  require_tensor(state.exp_avg_sq(), "exp_avg_sq", where);
  if (options.amsgrad()) require_tensor(state.max_exp_avg_sq(), "max_exp_avg_sq", where);
}
void check_complete(torch::optim::AdamParamState& state, const torch::optim::AdamOptions& options,
                    const std::string& where) {
  check_adam(state, options, where);
}
void check_complete(torch::optim::AdamWParamState& state, const torch::optim::AdamWOptions& options,
                    const std::string& where) {
  check_adam(state, options, where);
}

void check_complete(torch::optim::RMSpropParamState& state, const torch::optim::RMSpropOptions& options,
                    const std::string& where) {
  require_tensor(state.square_avg(), "square_avg", where);
  if (options.momentum() > 0) require_tensor(state.momentum_buffer(), "momentum_buffer", where);
  if (options.centered()) require_tensor(state.grad_avg(), "grad_avg", where);
}

void check_complete(torch::optim::AdagradParamState& state, const torch::optim::AdagradOptions&,
                    const std::string& where) {
  require_tensor(state.sum(), "sum", where);
}

void check_complete(LionParamState& state, const LionOptions&, const std::string& where) {
  require_tensor(state.exp_avg(), "exp_avg", where);
}

// By AdamW a parameter has both, or, not updated yet, none.
void check_complete(MuonParamState& state, const MuonOptions&, const std::string& where) {
  if (state.step() > 0 || state.exp_avg().defined()) require_tensor(state.exp_avg_sq(), "exp_avg_sq", where);
  if (state.step() > 0 || state.exp_avg_sq().defined()) require_tensor(state.exp_avg(), "exp_avg", where);
}

void check_complete(AdafactorParamState& state, const AdafactorOptions&, const std::string& where) {
  if (state.variance().defined() || state.step() == 0) return;
  require_tensor(state.row_var(), "row_var", where);
  require_tensor(state.col_var(), "col_var", where);
}

// Takes fields out of a dict, into references.
struct Getter {
  const Dict& dict;
  const std::string& where;
  const at::Tensor* parameter = nullptr;  // whose state it is
  bool may_take = false;
  bool* all_fit = nullptr;  // becomes false when a tensor could not be taken as it is

  template <class T>
  void operator()(OwnField own, T& value) const {
    if (has(dict, own.name)) (*this)(own.name, value);
  }
  void operator()(const char* name, AdafactorOptions::Eps& eps) const {
    const std::vector<IValue> pair = pair_of(name);
    const std::string what = where + ": '" + name + "'";
    std::optional<double> first;
    if (!pair[0].isNone()) first = number_of(pair[0], what);
    eps = {first, number_of(pair[1], what)};
  }
  void operator()(const char* name, MuonRate& rate) const {
    const IValue found = field(dict, name, where);
    if (!found.isNone() && !found.isString()) fail(where + ": '" + name + "' is no text");
    const std::string text = found.isNone() ? "original" : found.toStringRef();
    if (text != "original" && text != "match_rms_adamw") fail(where + ": '" + name + "' is '" + text + "'");
    rate = text == "original" ? MuonRate::original : MuonRate::match_rms_adamw;
  }
  void operator()(const char* name, double& value) const {
    value = number_of(field(dict, name, where), where + ": '" + name + "'");
  }
  void operator()(const char* name, bool& value) const {
    const IValue found = field(dict, name, where);
    if (!found.isBool()) fail(where + ": '" + name + "' is neither true nor false");
    value = found.toBool();
  }
  void operator()(const char* name, std::int64_t& step) const {
    step = count_of(field(dict, name, where), where + ": '" + name + "'");
  }
  std::vector<IValue> pair_of(const char* name) const {
    const IValue found = field(dict, name, where);
    std::vector<IValue> pair;
    if (found.isTuple()) pair = found.toTupleRef().elements().vec();
    if (found.isList()) pair = found.toListRef().vec();
    if (pair.size() != 2) fail(where + ": '" + name + "' is no pair");
    return pair;
  }
  void operator()(const char* name, std::tuple<double, double>& betas) const {
    const std::vector<IValue> pair = pair_of(name);
    const std::string what = where + ": '" + name + "'";
    betas = {number_of(pair[0], what), number_of(pair[1], what)};
  }
  void operator()(const char* name, at::Tensor& tensor) const {
    if (!has(dict, name) || field(dict, name, where).isNone()) return;
    const IValue found = field(dict, name, where);
    if (!found.isTensor()) fail(where + ": '" + name + "' is no tensor");
    const auto sizes = sizes_of_field(name, *parameter);
    if (found.toTensor().sizes() != sizes)
      fail(where + ": '" + name + "' has sizes " + c10::str(found.toTensor().sizes()) + ", the parameter " +
           c10::str(parameter->sizes()));
    tensor = found.toTensor().sizes() == parameter->sizes() ? placed(found.toTensor()) : placed_dense(found.toTensor());
  }

  // One that has other sizes than the parameter.
  at::Tensor placed_dense(const at::Tensor& found) const {
    const bool fits = found.scalar_type() == parameter->scalar_type() && found.device() == parameter->device() &&
                      found.is_contiguous();
    if (may_take && fits) return found;
    if (!fits && all_fit) *all_fit = false;
    return at::empty(found.sizes(), parameter->options().requires_grad(false)).copy_(found);
  }

  // In the parameter's type and memory order, on its device, as PyTorch does.
  at::Tensor placed(const at::Tensor& found) const {
    const bool fits = found.scalar_type() == parameter->scalar_type() && found.device() == parameter->device() &&
                      found.strides() == parameter->strides();
    if (may_take && fits) return found;
    if (!fits && all_fit) *all_fit = false;
    return at::empty_like(*parameter, parameter->options().requires_grad(false)).copy_(found);
  }
};

void check_python_fields(const Dict& group, const std::vector<PythonField>& fields, const std::string& where) {
  for (const PythonField& only : fields)
    if (only.matters && has(group, only.name) && field(group, only.name, where) != only.value)
      fail(where + " has another '" + only.name + "' than this class of optimizer, so it is of another class");
}

// What is made of a dict, before the optimizer gets it.
template <class Options>
struct LoadedGroups {
  std::vector<Options> options;  // by group
  std::vector<std::pair<void*, std::unique_ptr<OptimizerParamState>>> states;
  bool all_fit = true;
};

// The state of the parameters of group `g`, which `states` has under `ids`.
template <class Class>
void prepare_states(LoadedGroups<typename Class::Options>& prepared, const std::vector<at::Tensor>& parameters,
                    std::size_t g, const std::vector<IValue>& ids, const Dict& states, const LoadOptions& options) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto found = ids[i].isInt() ? states.find(ids[i]) : states.end();
    if (found == states.end() || (options.wanted && !options.wanted(parameters[i]))) continue;
    const std::string its = "the state of parameter " + std::to_string(i) + " of group " + std::to_string(g);
    const Dict values = dict_of(found->value(), its);
    auto state = std::make_unique<typename Class::State>();
    visit_fields(*state, Getter{values, its, &parameters[i], options.may_take, &prepared.all_fit});
    check_complete(*state, prepared.options[g], its);
    prepared.states.emplace_back(parameters[i].unsafeGetTensorImpl(), std::move(state));
  }
}

template <class Class>
LoadedGroups<typename Class::Options> prepare_groups(Optimizer& optimizer, const IValue& groups, const Dict& states,
                                                     const LoadOptions& options) {
  LoadedGroups<typename Class::Options> prepared;
  auto& param_groups = optimizer.param_groups();
  const auto ids = parameter_ids(optimizer, groups, options.names);
  for (std::size_t g = 0; g < param_groups.size(); ++g) {
    const std::string where = "parameter group " + std::to_string(g);
    const Dict group = dict_of(groups.toListRef()[g], where);
    check_python_fields(group, Class::python_fields(), where);
    const auto& own = static_cast<const typename Class::Options&>(param_groups[g].options());
    prepared.options.push_back(own);
    visit_fields(prepared.options.back(), Getter{group, where});
    if (!options.with_options) prepared.options.back() = own;
    prepare_states<Class>(prepared, param_groups[g].params(), g, ids[g], states, options);
  }
  return prepared;
}

template <class Class>
std::function<void()> prepare_class(Optimizer& optimizer, const Dict& all, const LoadOptions& options) {
  using Options = typename Class::Options;
  const std::string whole = "the optimizer's state";
  const IValue groups = field(all, "param_groups", whole);
  const Dict states = dict_of(field(all, "state", whole), whole + "'s 'state'");
  const at::NoGradGuard no_grad;
  const auto prepared =
      std::make_shared<LoadedGroups<Options>>(prepare_groups<Class>(optimizer, groups, states, options));
  // One that is taken keeps the memory of the whole file, so it is all or none.
  if (options.may_take && !prepared->all_fit) {
    LoadOptions copying = options;
    copying.may_take = false;
    *prepared = prepare_groups<Class>(optimizer, groups, states, copying);
  }
  return [&optimizer, prepared] {
    for (std::size_t g = 0; g < prepared->options.size(); ++g)
      static_cast<Options&>(optimizer.param_groups()[g].options()) = prepared->options[g];
    optimizer.state().clear();
    for (auto& [parameter, state] : prepared->states) optimizer.state()[parameter] = std::move(state);
  };
}

}  // namespace

std::function<void()> prepare_load(Optimizer& optimizer, const IValue& state, const LoadOptions& options) {
  const Dict all = dict_of(state, "the optimizer's state");
  std::function<void()> load;
  if (with_class(optimizer, [&](auto its) { load = prepare_class<decltype(its)>(optimizer, all, options); }))
    return load;
  return prepare_own(optimizer, all, options);
}

}  // namespace tandem::optim
