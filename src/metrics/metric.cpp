#include "tandem/metrics/metric.h"

#include <algorithm>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "runtime/rank_context.h"
#include "tandem/core/error.h"
#include "tandem/data/detail/step_info.h"

namespace tandem::metrics {

Metric::Metric(Rank& rank, std::string name) : rank_(rank), name_(std::move(name)) {}

void Metric::refuse(const std::string& what) const { throw DataError(name_ + ": " + what); }

void Metric::add_state(const std::string& name, Merge merge, at::Tensor zero) {
  if (merge == Merge::sum && !at::isIntegralType(zero.scalar_type(), /*includeBool=*/false))
    throw ConfigError(name_ + ": state '" + name + "' is a sum of " + c10::toString(zero.scalar_type()) +
                      ", which depends on the order; use integers, or metrics::exact_zero() and exact_add");
  states_[name] = State{merge, zero, zero.clone(), {}};
}

at::Tensor& Metric::state(const std::string& name) { return states_.at(name).sum; }

void Metric::append(const std::string& name, const at::Tensor& rows) {
  states_.at(name).rows.push_back(rows.to(at::kCPU).clone());
}

// Of the rows of all ranks in a loader's last step the first are its own; ranks that fill it up have as many each.
std::int64_t Metric::rows_to_keep(std::int64_t rows) const {
  const RankContext* const context = current_rank();
  const data::StepInfo* const step = context ? context->window.loaders().current() : nullptr;
  if (!step || step->samples_to_keep < 0) return rows;
  return std::clamp<std::int64_t>(step->samples_to_keep - rank_.rank() * rows, 0, rows);
}

void Metric::update(const at::Tensor& outputs, const at::Tensor& targets) {
  if (!outputs.defined() || !targets.defined()) refuse("outputs and targets are two tensors, and one is undefined");
  if (outputs.dim() == 0 || targets.dim() == 0 || outputs.size(0) != targets.size(0))
    refuse("outputs of shape " + c10::str(outputs.sizes()) + " and targets of shape " + c10::str(targets.sizes()) +
           "; both have a row (dim 0) for each sample");
  const at::NoGradGuard no_grad;
  const std::int64_t rows = rows_to_keep(outputs.size(0));
  if (rows == 0) return;
  add(outputs.detach().narrow(0, 0, rows), targets.detach().narrow(0, 0, rows));
  samples_ += rows;
}

void Metric::reset() {
  samples_ = 0;
  for (auto& [name, state] : states_) {
    state.sum = state.zero.clone();
    state.rows.clear();
  }
}

// Copies: other ranks read them while this one goes on.
Metric::States Metric::own_states() const {
  States own;
  for (const auto& [name, state] : states_)
    if (state.merge == Merge::sum)
      own[name] = state.sum.clone();
    else
      own[name] = state.rows.empty() ? state.zero.clone() : at::cat(state.rows);
  return own;
}

at::Tensor Metric::compute() {
  const at::NoGradGuard no_grad;
  const auto all = rank_.gather_objects(std::pair(samples_, own_states()));
  States merged;
  for (const auto& [name, state] : states_) {
    std::vector<at::Tensor> parts;
    for (const auto& [samples, states] : all)
      if (samples > 0) parts.push_back(states.at(name));
    if (parts.empty()) refuse("no rank has given it a sample; call update before compute");
    for (const at::Tensor& part : parts)
      if (part.sizes().slice(state.merge == Merge::join) != parts[0].sizes().slice(state.merge == Merge::join))
        refuse("ranks have given it outputs of other shapes: " + c10::str(part.sizes()) + " and " +
               c10::str(parts[0].sizes()));
    merged[name] = parts[0].clone();
    if (state.merge == Merge::join)
      merged[name] = at::cat(parts);
    else
      for (std::size_t i = 1; i < parts.size(); ++i) merged[name].add_(parts[i]);
  }
  return result(merged);
}

}  // namespace tandem::metrics
