// What a ModelReducer knows of the accumulation window: its factor is for what its passes have added, not for what
// gradients held before it.
#include <algorithm>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "nn/model_reducer.h"
#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

// Nobody waits for a GPU to learn it: there zeros are kept like other numbers.
bool is_known_to_be_zero(const at::Tensor& gradient) { return gradient.is_cpu() && is_zero(gradient); }

// Dense gradients may be part of a graph, which is not to see that they change. What is done in place to a detached
// sparse tensor the tensor itself does not see.
at::Tensor changeable(const at::Tensor& gradient) { return gradient.is_sparse() ? gradient : gradient.detach(); }

void add(at::Tensor& gradient, const at::Tensor& other, double factor) {
  if (gradient.is_sparse() && !other.is_sparse()) gradient = gradient.to_dense();
  changeable(gradient).add_(other, factor);
}

}  // namespace

void ModelReducer::begin_window() {
  for (ParameterSlot& slot : slots_) slot.forget_window();
}

// Before the window's first addition to the gradient.
void ModelReducer::keep_before(std::size_t index) {
  ParameterSlot& slot = slots_[index];
  const at::Tensor& gradient = parameters_[index].second.grad();
  if (slot.before.defined() || !gradient.defined() || is_known_to_be_zero(gradient)) return;
  const at::NoGradGuard no_grad;
  slot.before = gradient.detach().clone();
  slot.before_is_local = slot.pending;
  slot.leave(gradient);
}

// Before anything is done with a gradient of the window: the program may have dropped it, or written to it.
void ModelReducer::look_for_writes(std::size_t index) {
  ParameterSlot& slot = slots_[index];
  const at::Tensor& gradient = parameters_[index].second.grad();
  if (!slot.before.defined() || slot.is_as_left(gradient)) return;
  if (!gradient.defined() || is_zero(gradient))
    slot.before.reset();
  else
    slot.before_is_lost = true;
}

void ModelReducer::scale_window(double factor) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].in_window) continue;
    look_for_writes(i);
    if (factor != 1 && parameters_[i].second.grad().defined()) scale_added(i, factor);
    slots_[i].before.reset();
  }
}

void ModelReducer::scale_added(std::size_t index, double factor) {
  const ParameterSlot& slot = slots_[index];
  const auto& [name, parameter] = parameters_[index];
  at::Tensor& gradient = parameter.mutable_grad();
  if (slot.before.defined() && slot.before_is_lost)
    throw ConfigError("the gradient of " + name +
                      " was kept from an earlier window and written to between the passes of this one, whose part is "
                      "now to be scaled and cannot be told apart; write to gradients when the window has closed, or "
                      "drop them (zero_grad) before it begins");
  if (slot.before.defined()) add(gradient, slot.before, -1);
  changeable(gradient).mul_(factor);
  if (slot.before.defined()) add(gradient, slot.before, 1);
}

void ModelReducer::keep_unreduced() {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    ParameterSlot& slot = slots_[i];
    at::Tensor& gradient = parameters_[i].second.mutable_grad();
    look_for_writes(i);
    if (!slot.pending)
      gradient.reset();
    else if (gradient.defined() && slot.before.defined() && !slot.before_is_local)
      add(gradient, slot.before, -1);
    slot.before.reset();
  }
}

// The mean of what gradients held before the window, where not all of it was reduced: a reduction within the window has
// made it a part of the mean on all ranks.
void ModelReducer::reduce_before() {
  std::vector<at::Tensor> all;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (!(anywhere_[i] & PassReport::kLocalBefore)) continue;
    ParameterSlot& slot = slots_[i];
    if (!slot.before.defined())
      slot.before = at::zeros_like(parameters_[i].second, at::MemoryFormat::Contiguous).detach();
    if (slot.before.is_sparse()) slot.before = slot.before.to_dense();
    slot.before = slot.before.contiguous();
    slot.before_is_local = false;
    all.push_back(slot.before);
  }
  if (!all.empty()) communicator_.all_reduce(all, comm::ReduceOp::mean);
}

}  // namespace tandem::nn
