#include "tandem/metrics/regression.h"

#include <limits>
#include <string>

#include "metrics/checks.h"
#include "tandem/metrics/exact_sum.h"

namespace tandem::metrics {
namespace {

at::Tensor numbers(const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); }

std::string wrong_numbers(const at::Tensor& outputs, const at::Tensor& targets) {
  if (outputs.sizes() != targets.sizes()) return shapes(outputs, targets) + "; they have one shape";
  for (const at::Tensor& tensor : {outputs, targets}) {
    if (tensor.is_complex()) return "complex numbers, which have no order";
    if (!at::isfinite(tensor).all().item<bool>())
      return (tensor.is_same(outputs) ? "an output" : "a target") + std::string(" is infinite or NaN");
  }
  return "";
}

double mean_of(const at::Tensor& sum, const at::Tensor& count) { return exact_value(sum) / count.item<double>(); }

at::Tensor scalar_of(double value) { return at::scalar_tensor(value, at::kDouble); }

}  // namespace

MeanSquaredError::MeanSquaredError(Rank& rank) : Metric(rank, "MeanSquaredError") {
  add_state("sum", Merge::sum, exact_zero());
  add_state("count", Merge::sum, at::zeros({}, at::kLong));
}

void MeanSquaredError::add(const at::Tensor& outputs, const at::Tensor& targets) {
  if (const std::string wrong = wrong_numbers(outputs, targets); !wrong.empty()) refuse(wrong);
  exact_add(state("sum"), (numbers(outputs) - numbers(targets)).square());
  state("count").add_(outputs.numel());
}

at::Tensor MeanSquaredError::result(const States& of_all) const {
  return scalar_of(mean_of(of_all.at("sum"), of_all.at("count")));
}

MeanAbsoluteError::MeanAbsoluteError(Rank& rank) : Metric(rank, "MeanAbsoluteError") {
  add_state("sum", Merge::sum, exact_zero());
  add_state("count", Merge::sum, at::zeros({}, at::kLong));
}

void MeanAbsoluteError::add(const at::Tensor& outputs, const at::Tensor& targets) {
  if (const std::string wrong = wrong_numbers(outputs, targets); !wrong.empty()) refuse(wrong);
  exact_add(state("sum"), (numbers(outputs) - numbers(targets)).abs());
  state("count").add_(outputs.numel());
}

at::Tensor MeanAbsoluteError::result(const States& of_all) const {
  return scalar_of(mean_of(of_all.at("sum"), of_all.at("count")));
}

R2::R2(Rank& rank) : Metric(rank, "R2") {
  add_state("targets", Merge::join, at::empty({0}, at::kDouble));
  add_state("squares", Merge::join, at::empty({0}, at::kDouble));
}

void R2::add(const at::Tensor& outputs, const at::Tensor& targets) {
  if (const std::string wrong = wrong_numbers(outputs, targets); !wrong.empty()) refuse(wrong);
  if (targets.dim() > 2) refuse(shapes(outputs, targets) + "; they are [N] or [N, D]");
  append("targets", numbers(targets));
  append("squares", (numbers(outputs) - numbers(targets)).square());
}

at::Tensor R2::result(const States& of_all) const {
  const at::Tensor targets = of_all.at("targets").view({of_all.at("targets").size(0), -1});
  const at::Tensor squares = of_all.at("squares").view_as(targets);
  const auto sum_of = [](const at::Tensor& values) {
    at::Tensor sum = exact_zero();
    exact_add(sum, values);
    return exact_value(sum);
  };
  if (targets.size(0) < 2) return scalar_of(std::numeric_limits<double>::quiet_NaN());
  double sum = 0;
  for (std::int64_t i = 0; i < targets.size(1); ++i) {
    const at::Tensor column = targets.select(1, i);
    const double mean = sum_of(column) / static_cast<double>(column.size(0));
    const double unexplained = sum_of(squares.select(1, i)), variance = sum_of((column - mean).square());
    sum += variance > 0 ? 1 - unexplained / variance : unexplained > 0 ? 0 : 1;
  }
  return scalar_of(sum / static_cast<double>(targets.size(1)));
}

}  // namespace tandem::metrics
