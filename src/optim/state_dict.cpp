#include "tandem/optim/state_dict.h"

#include <memory>
#include <sstream>
#include <tuple>
#include <typeinfo>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/serialize/archive.h>

#include "tandem/core/error.h"

namespace tandem::optim {
namespace {

using c10::IValue;
using torch::optim::Optimizer;
using torch::optim::OptimizerParamState;
using Dict = c10::impl::GenericDict;
using List = c10::impl::GenericList;

Dict new_dict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }
List new_list() { return List(c10::AnyType::get()); }

[[noreturn]] void fail(const std::string& problem) { throw CheckpointError(problem); }

// ---- reading dicts; `where` says what they are of

Dict dict_of(const IValue& value, const std::string& where) {
  if (!value.isGenericDict()) fail(where + " is no dict");
  return value.toGenericDict();
}

IValue field(const Dict& dict, const std::string& name, const std::string& where) {
  const auto found = dict.find(name);
  if (found == dict.end()) fail(where + " has no '" + name + "'");
  return found->value();
}

bool has(const Dict& dict, const std::string& name) { return dict.contains(name); }

bool is_number(const IValue& value) {
  return value.isInt() || value.isDouble() || (value.isTensor() && value.toTensor().numel() == 1);
}

double number_of(const IValue& value, const std::string& what) {
  if (!is_number(value)) fail(what + " is no number");
  if (value.isTensor()) return value.toTensor().item<double>();
  return value.isInt() ? static_cast<double>(value.toInt()) : value.toDouble();
}

std::int64_t count_of(const IValue& value, const std::string& what) {
  const double number = number_of(value, what);
  if (!(number >= 0 && number < 1e15)) fail(what + " is no count");
  return static_cast<std::int64_t>(number);
}

// ---- the fields of each class, under PyTorch's names: `visit(name, value)`

template <class Visit>
void visit_fields(torch::optim::SGDOptions& options, const Visit& visit) {
  visit("lr", options.lr());
  visit("momentum", options.momentum());
  visit("dampening", options.dampening());
  visit("weight_decay", options.weight_decay());
  visit("nesterov", options.nesterov());
}

template <class Options, class Visit>
void visit_adam(Options& options, const Visit& visit) {
  visit("lr", options.lr());
  visit("betas", options.betas());
  visit("eps", options.eps());
  visit("weight_decay", options.weight_decay());
  visit("amsgrad", options.amsgrad());
}

template <class Visit>
void visit_fields(torch::optim::AdamOptions& options, const Visit& visit) {
  visit_adam(options, visit);
}
template <class Visit>
void visit_fields(torch::optim::AdamWOptions& options, const Visit& visit) {
  visit_adam(options, visit);
}

template <class Visit>
void visit_fields(torch::optim::RMSpropOptions& options, const Visit& visit) {
  visit("lr", options.lr());
  visit("momentum", options.momentum());
  visit("alpha", options.alpha());
  visit("eps", options.eps());
  visit("centered", options.centered());
  visit("weight_decay", options.weight_decay());
}

template <class Visit>
void visit_fields(torch::optim::AdagradOptions& options, const Visit& visit) {
  visit("lr", options.lr());
  visit("lr_decay", options.lr_decay());
  visit("eps", options.eps());
  visit("weight_decay", options.weight_decay());
  visit("initial_accumulator_value", options.initial_accumulator_value());
}

template <class Visit>
void visit_fields(torch::optim::SGDParamState& state, const Visit& visit) {
  visit("momentum_buffer", state.momentum_buffer());
}

template <class State, class Visit>
void visit_adam_state(State& state, const Visit& visit) {
  visit("step", state.step());
  visit("exp_avg", state.exp_avg());
  visit("exp_avg_sq", state.exp_avg_sq());
  visit("max_exp_avg_sq", state.max_exp_avg_sq());
}

template <class Visit>
void visit_fields(torch::optim::AdamParamState& state, const Visit& visit) {
  visit_adam_state(state, visit);
}
template <class Visit>
void visit_fields(torch::optim::AdamWParamState& state, const Visit& visit) {
  visit_adam_state(state, visit);
}

template <class Visit>
void visit_fields(torch::optim::RMSpropParamState& state, const Visit& visit) {
  visit("step", state.step());
  visit("square_avg", state.square_avg());
  visit("momentum_buffer", state.momentum_buffer());
  visit("grad_avg", state.grad_avg());
}

template <class Visit>
void visit_fields(torch::optim::AdagradParamState& state, const Visit& visit) {
  visit("step", state.step());
  visit("sum", state.sum());
}

// The tensors without which a step would fail.
void require(const at::Tensor& tensor, const char* name, const std::string& where) {
  if (!tensor.defined()) fail(where + " has no '" + name + "'");
}

void check_complete(torch::optim::SGDParamState&, const torch::optim::SGDOptions&, const std::string&) {}

template <class State, class Options>
void check_adam(State& state, const Options& options, const std::string& where) {
  require(state.exp_avg(), "exp_avg", where);
  require(state.exp_avg_sq(), "exp_avg_sq", where);
  if (options.amsgrad()) require(state.max_exp_avg_sq(), "max_exp_avg_sq", where);
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
  require(state.square_avg(), "square_avg", where);
  if (options.momentum() > 0) require(state.momentum_buffer(), "momentum_buffer", where);
  if (options.centered()) require(state.grad_avg(), "grad_avg", where);
}

void check_complete(torch::optim::AdagradParamState& state, const torch::optim::AdagradOptions&,
                    const std::string& where) {
  require(state.sum(), "sum", where);
}

// ---- a class of optimizers: its options and states, and what only PyTorch's groups have

struct PythonField {
  const char* name;
  IValue value;  // the only one that LibTorch's classes have
  bool matters;  // another value would be another optimizer
};

std::vector<PythonField> common_fields(std::vector<PythonField> more = {}) {
  more.push_back({"maximize", false, true});
  more.push_back({"foreach", IValue(), false});
  more.push_back({"differentiable", false, false});
  more.push_back({"fused", IValue(), false});
  return more;
}

struct Sgd {
  using Options = torch::optim::SGDOptions;
  using State = torch::optim::SGDParamState;
  static std::vector<PythonField> python_fields() { return common_fields(); }
};
struct Adam {
  using Options = torch::optim::AdamOptions;
  using State = torch::optim::AdamParamState;
  static std::vector<PythonField> python_fields() {
    return common_fields({{"capturable", false, false}, {"decoupled_weight_decay", false, true}});
  }
};
struct AdamW {
  using Options = torch::optim::AdamWOptions;
  using State = torch::optim::AdamWParamState;
  static std::vector<PythonField> python_fields() {
    return common_fields({{"capturable", false, false}, {"decoupled_weight_decay", true, true}});
  }
};
struct RmsProp {
  using Options = torch::optim::RMSpropOptions;
  using State = torch::optim::RMSpropParamState;
  static std::vector<PythonField> python_fields() { return common_fields({{"capturable", false, false}}); }
};
struct Adagrad {
  using Options = torch::optim::AdagradOptions;
  using State = torch::optim::AdagradParamState;
  static std::vector<PythonField> python_fields() { return common_fields(); }
};

// Calls `with(class)` for the class of `optimizer`; false when it is none of them. Derived ones may have other state.
template <class With>
bool with_class(const Optimizer& optimizer, const With& with) {
  const std::type_info& type = typeid(optimizer);
  if (type == typeid(torch::optim::SGD)) return with(Sgd()), true;
  if (type == typeid(torch::optim::Adam)) return with(Adam()), true;
  if (type == typeid(torch::optim::AdamW)) return with(AdamW()), true;
  if (type == typeid(torch::optim::RMSprop)) return with(RmsProp()), true;
  if (type == typeid(torch::optim::Adagrad)) return with(Adagrad()), true;
  return false;
}

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
IValue dict_of_class(const Optimizer& optimizer, const GroupValues& more) {
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
    groups.push_back(group.dict);
  }
  Dict all = new_dict();
  all.insert("state", states);
  all.insert("param_groups", groups);
  return all;
}

constexpr const char* kArchive = "libtorch_archive";

IValue dict_of_archive(const Optimizer& optimizer) {
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  std::ostringstream stream;
  archive.save_to(stream);
  const std::string bytes = stream.str();
  Dict all = new_dict();
  all.insert(
      kArchive,
      at::from_blob(const_cast<char*>(bytes.data()), static_cast<std::int64_t>(bytes.size()), at::kByte).clone());
  return all;
}

}  // namespace

IValue state_dict(const Optimizer& optimizer, const GroupValues& more) {
  IValue dict;
  if (with_class(optimizer, [&](auto its) { dict = dict_of_class<decltype(its)>(optimizer, more); })) return dict;
  return dict_of_archive(optimizer);
}

// ---- reading

namespace {

// Takes fields out of a dict, into references.
struct Getter {
  const Dict& dict;
  const std::string& where;
  const at::Tensor* parameter = nullptr;  // whose state it is
  bool may_take = false;
  bool* all_fit = nullptr;  // becomes false when a tensor could not be taken as it is

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
  void operator()(const char* name, std::tuple<double, double>& betas) const {
    const IValue found = field(dict, name, where);
    std::vector<IValue> pair;
    if (found.isTuple()) pair = found.toTupleRef().elements().vec();
    if (found.isList()) pair = found.toListRef().vec();
    const std::string what = where + ": '" + name + "'";
    if (pair.size() != 2) fail(what + " is no pair");
    betas = {number_of(pair[0], what), number_of(pair[1], what)};
  }
  void operator()(const char* name, at::Tensor& tensor) const {
    if (!has(dict, name) || field(dict, name, where).isNone()) return;
    const IValue found = field(dict, name, where);
    if (!found.isTensor()) fail(where + ": '" + name + "' is no tensor");
    if (found.toTensor().sizes() != parameter->sizes())
      fail(where + ": '" + name + "' has sizes " + c10::str(found.toTensor().sizes()) + ", the parameter " +
           c10::str(parameter->sizes()));
    tensor = placed(found.toTensor());
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
struct Prepared {
  std::vector<Options> options;  // by group
  std::vector<std::pair<void*, std::unique_ptr<OptimizerParamState>>> states;
  bool all_fit = true;
};

// The state of the parameters of group `g`, which `states` has under `ids`.
template <class Class>
void prepare_states(Prepared<typename Class::Options>& prepared, const std::vector<at::Tensor>& parameters,
                    std::size_t g, const IValue& ids, const Dict& states, const LoadOptions& options) {
  if (!ids.isList() || ids.toListRef().size() != parameters.size())
    fail("parameter group " + std::to_string(g) + " is of another number of parameters than this optimizer's " +
         std::to_string(parameters.size()));
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const IValue id = ids.toListRef()[i];
    const auto found = id.isInt() ? states.find(id) : states.end();
    if (found == states.end() || (options.wanted && !options.wanted(parameters[i]))) continue;
    const std::string its = "the state of parameter " + std::to_string(i) + " of group " + std::to_string(g);
    const Dict values = dict_of(found->value(), its);
    auto state = std::make_unique<typename Class::State>();
    visit_fields(*state, Getter{values, its, &parameters[i], options.may_take, &prepared.all_fit});
    check_complete(*state, prepared.options.back(), its);
    prepared.states.emplace_back(parameters[i].unsafeGetTensorImpl(), std::move(state));
  }
}

template <class Class>
Prepared<typename Class::Options> prepare_groups(Optimizer& optimizer, const IValue& groups, const Dict& states,
                                                 const LoadOptions& options) {
  Prepared<typename Class::Options> prepared;
  auto& param_groups = optimizer.param_groups();
  for (std::size_t g = 0; g < param_groups.size(); ++g) {
    const std::string where = "parameter group " + std::to_string(g);
    const Dict group = dict_of(groups.toListRef()[g], where);
    check_python_fields(group, Class::python_fields(), where);
    prepared.options.push_back(static_cast<const typename Class::Options&>(param_groups[g].options()));
    visit_fields(prepared.options.back(), Getter{group, where});
    prepare_states<Class>(prepared, param_groups[g].params(), g, field(group, "params", where), states, options);
  }
  return prepared;
}

template <class Class>
std::function<void()> prepare_class(Optimizer& optimizer, const Dict& all, const LoadOptions& options) {
  using Options = typename Class::Options;
  const std::string whole = "the optimizer's state";
  const IValue groups = field(all, "param_groups", whole);
  const Dict states = dict_of(field(all, "state", whole), whole + "'s 'state'");
  auto& param_groups = optimizer.param_groups();
  if (!groups.isList()) fail(whole + "'s 'param_groups' is no list");
  if (groups.toListRef().size() != param_groups.size())
    fail(whole + " is of " + std::to_string(groups.toListRef().size()) + " parameter groups; this one has " +
         std::to_string(param_groups.size()));
  const at::NoGradGuard no_grad;
  const auto prepared = std::make_shared<Prepared<Options>>(prepare_groups<Class>(optimizer, groups, states, options));
  // One that is taken keeps the memory of the whole file, so it is all or none.
  if (options.may_take && !prepared->all_fit)
    *prepared = prepare_groups<Class>(optimizer, groups, states, {options.wanted, /*may_take=*/false});
  return [&optimizer, prepared] {
    for (std::size_t g = 0; g < prepared->options.size(); ++g)
      static_cast<Options&>(optimizer.param_groups()[g].options()) = prepared->options[g];
    optimizer.state().clear();
    for (auto& [parameter, state] : prepared->states) optimizer.state()[parameter] = std::move(state);
  };
}

std::function<void()> prepare_archive(Optimizer& optimizer, const Dict& all) {
  const IValue bytes = field(all, kArchive, "the optimizer's state, which is not PyTorch's for this class,");
  if (!bytes.isTensor()) fail("the optimizer's state is no tensor of bytes");
  const at::Tensor content = bytes.toTensor().contiguous();
  std::istringstream stream(
      std::string(static_cast<const char*>(content.const_data_ptr()), static_cast<std::size_t>(content.nbytes())));
  const auto archive = std::make_shared<torch::serialize::InputArchive>();
  archive->load_from(stream);
  return [&optimizer, archive] { optimizer.load(*archive); };
}

}  // namespace

std::function<void()> prepare_load(Optimizer& optimizer, const IValue& state, const LoadOptions& options) {
  const Dict all = dict_of(state, "the optimizer's state");
  std::function<void()> load;
  if (with_class(optimizer, [&](auto its) { load = prepare_class<decltype(its)>(optimizer, all, options); }))
    return load;
  return prepare_archive(optimizer, all);
}

// ---- schedulers

namespace {

constexpr const char* kSchedulers = "_schedulers";

IValue value_of(const SchedulerState::Value& value) {
  if (const auto* number = std::get_if<std::int64_t>(&value)) return *number;
  if (const auto* number = std::get_if<double>(&value)) return *number;
  List list = new_list();
  for (const double number : std::get<std::vector<double>>(value)) list.push_back(number);
  return list;
}

}  // namespace

IValue state_dict(const SchedulerState& state) {
  Dict dict = new_dict();
  for (const auto& [name, value] : state.values) dict.insert(name, value_of(value));
  if (const auto last = state.values.find("last_epoch"); last != state.values.end())
    dict.insert("_step_count", std::get<std::int64_t>(last->second) + 1);  // PyTorch's calls of step, its own included
  if (state.schedulers.empty()) return dict;
  List schedulers = new_list();
  for (const SchedulerState& one : state.schedulers) schedulers.push_back(state_dict(one));
  dict.insert(kSchedulers, schedulers);
  return dict;
}

namespace {

// `left`: how many more schedulers the file may have. Values can share parts, so that a small file can have endlessly
// many.
SchedulerState scheduler_state_of(const IValue& state, int& left) {
  if (left-- == 0) fail("the scheduler's state has more schedulers within schedulers than anybody needs");
  SchedulerState result;
  for (const auto& item : dict_of(state, "the scheduler's state")) {
    if (!item.key().isString()) continue;
    const std::string& name = item.key().toStringRef();
    const IValue& value = item.value();
    if (name == kSchedulers && value.isList()) {
      for (const IValue& one : value.toListRef()) result.schedulers.push_back(scheduler_state_of(one, left));
    } else if (value.isInt()) {
      result.values[name] = value.toInt();
    } else if (is_number(value)) {
      result.values[name] = number_of(value, name);
    } else if (value.isList()) {
      std::vector<double> numbers;
      for (const IValue& one : value.toListRef())
        if (is_number(one)) numbers.push_back(number_of(one, name));
      if (numbers.size() == value.toListRef().size()) result.values[name] = numbers;
    }
  }
  return result;
}

}  // namespace

SchedulerState scheduler_state_of(const IValue& state) {
  int left = 1000;
  return scheduler_state_of(state, left);
}

// ---- scaler

IValue state_dict(const GradScalerState& state) {
  Dict dict = new_dict();
  dict.insert("scale", state.scale);
  dict.insert("growth_factor", state.growth_factor);
  dict.insert("backoff_factor", state.backoff_factor);
  dict.insert("growth_interval", state.growth_interval);
  dict.insert("_growth_tracker", state.growth_tracker);
  return dict;
}

GradScalerState grad_scaler_state_of(const IValue& state) {
  const std::string where = "the scaler's state";
  const Dict dict = dict_of(state, where);
  const auto number = [&](const char* name) { return number_of(field(dict, name, where), where + ": '" + name + "'"); };
  const auto count = [&](const char* name) { return count_of(field(dict, name, where), where + ": '" + name + "'"); };
  return {.scale = number("scale"),
          .growth_factor = number("growth_factor"),
          .backoff_factor = number("backoff_factor"),
          .growth_interval = count("growth_interval"),
          .growth_tracker = count("_growth_tracker")};
}

}  // namespace tandem::optim
