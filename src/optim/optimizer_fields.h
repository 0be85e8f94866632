// The fields of LibTorch's optimizers and ours, under PyTorch's names.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include "tandem/optim/adafactor.h"
#include "tandem/optim/lion.h"
#include "tandem/optim/muon.h"

namespace tandem::optim {

// visit_fields(object, visit) calls `visit(name, value)` with a reference to each field of options or of a parameter's
// state.

// The name of a field that PyTorch's class lacks.
struct OwnField {
  const char* name;
  operator const char*() const { return name; }
};

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

template <class Visit>
void visit_fields(LionOptions& options, const Visit& visit) {
  visit("lr", options.lr());
  visit("betas", options.betas());
  visit("weight_decay", options.weight_decay());
}

template <class Visit>
void visit_fields(LionParamState& state, const Visit& visit) {
  visit("exp_avg", state.exp_avg());
}

template <class Visit>
void visit_fields(MuonOptions& options, const Visit& visit) {
  visit("lr", options.lr());
  visit("weight_decay", options.weight_decay());
  visit("momentum", options.momentum());
  visit("nesterov", options.nesterov());
  visit("eps", options.eps());
  visit("adjust_lr_fn", options.adjust_lr_fn());
  visit(OwnField{"orthogonalize"}, options.orthogonalize());
  visit(OwnField{"adamw_betas"}, options.adamw_betas());
  visit(OwnField{"adamw_eps"}, options.adamw_eps());
}

template <class Visit>
void visit_fields(MuonParamState& state, const Visit& visit) {
  visit("momentum_buffer", state.momentum_buffer());
  visit(OwnField{"step"}, state.step());
  visit("exp_avg", state.exp_avg());
  visit("exp_avg_sq", state.exp_avg_sq());
}

template <class Visit>
void visit_fields(AdafactorOptions& options, const Visit& visit) {
  visit("lr", options.lr());
  visit("beta2_decay", options.beta2_decay());
  visit("eps", options.eps());
  visit("d", options.d());
  visit("weight_decay", options.weight_decay());
}

template <class Visit>
void visit_fields(AdafactorParamState& state, const Visit& visit) {
  visit("step", state.step());
  visit("row_var", state.row_var());
  visit("col_var", state.col_var());
  visit("variance", state.variance());
}

// The sizes of a field of a parameter's state.
inline std::vector<std::int64_t> sizes_of_field(const std::string& name, const at::Tensor& parameter) {
  auto sizes = parameter.sizes().vec();
  if (sizes.size() >= 2 && name == "row_var") sizes[sizes.size() - 1] = 1;
  if (sizes.size() >= 2 && name == "col_var") sizes[sizes.size() - 2] = 1;
  return sizes;
}

// ---- a class of optimizers: its options and states, and what only PyTorch's groups have

struct PythonField {
  const char* name;
  c10::IValue value;  // the only one that LibTorch's classes have
  bool matters;       // another value would be another optimizer
};

inline std::vector<PythonField> common_fields(std::vector<PythonField> more = {}) {
  more.push_back({"maximize", false, true});
  more.push_back({"foreach", c10::IValue(), false});
  more.push_back({"differentiable", false, false});
  more.push_back({"fused", c10::IValue(), false});
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

struct LionClass {
  using Options = LionOptions;
  using State = LionParamState;
  static std::vector<PythonField> python_fields() { return {}; }
};
struct MuonClass {
  using Options = MuonOptions;
  using State = MuonParamState;
  static std::vector<PythonField> python_fields() {
    return {{"ns_coefficients", c10::ivalue::Tuple::create({3.4445, -4.7750, 2.0315}), true},
            {"ns_steps", std::int64_t{5}, true}};
  }
};
struct AdafactorClass {
  using Options = AdafactorOptions;
  using State = AdafactorParamState;
  static std::vector<PythonField> python_fields() {
    return {{"maximize", false, true}, {"foreach", c10::IValue(), false}};
  }
};

// Calls `with(class)` for the class of `optimizer`; false when it is none of them. Derived ones may have other state.
template <class With>
bool with_class(const torch::optim::Optimizer& optimizer, const With& with) {
  const std::type_info& type = typeid(optimizer);
  if (type == typeid(torch::optim::SGD)) return with(Sgd()), true;
  if (type == typeid(torch::optim::Adam)) return with(Adam()), true;
  if (type == typeid(torch::optim::AdamW)) return with(AdamW()), true;
  if (type == typeid(torch::optim::RMSprop)) return with(RmsProp()), true;
  if (type == typeid(torch::optim::Adagrad)) return with(Adagrad()), true;
  if (type == typeid(Lion)) return with(LionClass()), true;
  if (type == typeid(Muon)) return with(MuonClass()), true;
  if (type == typeid(Adafactor)) return with(AdafactorClass()), true;
  return false;
}

// Whether the state is of that class; calls `visit(tensor)` for its tensors, also undefined ones, if it is.
template <class Class, class Visit>
bool visit_tensors_of(torch::optim::OptimizerParamState& any, const Visit& visit) {
  auto* const state = dynamic_cast<typename Class::State*>(&any);
  if (!state) return false;
  visit_fields(*state, [&](const char*, auto& value) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(value)>, at::Tensor>) visit(value);
  });
  return true;
}

// Visits the tensors of a state of any of the classes, and nothing of others.
template <class Visit>
void visit_tensors(torch::optim::OptimizerParamState& state, const Visit& visit) {
  visit_tensors_of<Sgd>(state, visit) || visit_tensors_of<Adam>(state, visit) ||
      visit_tensors_of<AdamW>(state, visit) || visit_tensors_of<RmsProp>(state, visit) ||
      visit_tensors_of<Adagrad>(state, visit) || visit_tensors_of<LionClass>(state, visit) ||
      visit_tensors_of<MuonClass>(state, visit) || visit_tensors_of<AdafactorClass>(state, visit);
}

}  // namespace tandem::optim
