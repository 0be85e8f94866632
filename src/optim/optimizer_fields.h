// The fields of LibTorch's optimizers, under PyTorch's names.
#pragma once

#include <cstdint>
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

namespace tandem::optim {

// visit_fields(object, visit) calls `visit(name, value)` with a reference to each field of options or of a parameter's
// state.

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

// Calls `with(class)` for the class of `optimizer`; false when it is none of them. Derived ones may have other state.
template <class With>
bool with_class(const torch::optim::Optimizer& optimizer, const With& with) {
  const std::type_info& type = typeid(optimizer);
  if (type == typeid(torch::optim::SGD)) return with(Sgd()), true;
  if (type == typeid(torch::optim::Adam)) return with(Adam()), true;
  if (type == typeid(torch::optim::AdamW)) return with(AdamW()), true;
  if (type == typeid(torch::optim::RMSprop)) return with(RmsProp()), true;
  if (type == typeid(torch::optim::Adagrad)) return with(Adagrad()), true;
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
      visit_tensors_of<Adagrad>(state, visit);
}

}  // namespace tandem::optim
