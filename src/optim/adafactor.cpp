#include "tandem/optim/adafactor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <torch/optim/serialize.h>

#include "optim/check.h"
#include "optim/each_gradient.h"

namespace tandem::optim {
namespace {

double epsilon_of(at::ScalarType type) {
  double epsilon = 0;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "adafactor",
                                  [&] { epsilon = static_cast<double>(std::numeric_limits<scalar_t>::epsilon()); });
  return epsilon;
}

// The root of the mean square.
double rms(const at::Tensor& tensor) {
  return tensor.norm(2).item<double>() / std::sqrt(static_cast<double>(tensor.numel()));
}

void begin(const at::Tensor& parameter, AdafactorParamState& state) {
  const auto options = parameter.options().requires_grad(false);
  if (parameter.dim() < 2) return static_cast<void>(state.variance(at::zeros_like(parameter, options)));
  auto rows = parameter.sizes().vec(), columns = rows;
  rows[rows.size() - 1] = 1;
  columns[columns.size() - 2] = 1;
  state.row_var(at::zeros(rows, options)).col_var(at::zeros(columns, options));
}

// The mean squares of all elements, made of those of rows and columns.
at::Tensor mean_squares(const at::Tensor& gradient, AdafactorParamState& state, double share, double eps) {
  if (gradient.dim() < 2) return state.variance().lerp_(gradient * gradient, share).clone();
  const auto mean_square = [&](std::int64_t dim) {
    return at::norm(gradient, 2, {dim}, /*keepdim=*/true).square_().div_(gradient.size(dim));
  };
  state.row_var().lerp_(mean_square(-1), share);
  state.col_var().lerp_(mean_square(-2), share);
  return state.row_var().matmul(state.col_var()).div_(state.row_var().mean(-2, /*keepdim=*/true).clamp_min_(eps));
}

void update(at::Tensor parameter, const at::Tensor& gradient, AdafactorParamState& state,
            const AdafactorOptions& options) {
  if (state.step() == 0) begin(parameter, state);
  state.step(state.step() + 1);
  const auto step = static_cast<double>(state.step());
  const auto [eps1, eps2] = options.eps();
  const double eps = eps1.value_or(epsilon_of(parameter.scalar_type()));
  const double rate = std::max(eps2, rms(parameter)) * std::min(options.lr(), 1 / std::sqrt(step));
  if (options.weight_decay() != 0) parameter.mul_(1 - options.lr() * options.weight_decay());
  at::Tensor change = mean_squares(gradient, state, std::pow(step, options.beta2_decay()), eps);
  change.clamp_min_(eps * eps).rsqrt_().mul_(gradient);
  parameter.add_(change, -rate / std::max(1.0, rms(change) / options.d()));
}

}  // namespace

void AdafactorOptions::serialize(torch::serialize::OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(lr);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(beta2_decay);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(eps);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(d);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(weight_decay);
}

void AdafactorOptions::serialize(torch::serialize::InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, lr);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, beta2_decay);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(Eps, eps);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, d);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, weight_decay);
}

void AdafactorParamState::serialize(torch::serialize::OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(step);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(row_var);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(col_var);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(variance);
}

void AdafactorParamState::serialize(torch::serialize::InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(std::int64_t, step);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(at::Tensor, row_var);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(at::Tensor, col_var);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(at::Tensor, variance);
}

Adafactor::Adafactor(const std::vector<torch::optim::OptimizerParamGroup>& groups, AdafactorOptions defaults)
    : Optimizer(groups, std::make_unique<AdafactorOptions>(defaults)) {
  for (const auto& group : param_groups()) {
    const auto& options = static_cast<const AdafactorOptions&>(group.options());
    const auto [eps1, eps2] = options.eps();
    require(options.lr() >= 0, "lr", options.lr(), "0 or more");
    require(options.beta2_decay() <= 0, "beta2_decay", options.beta2_decay(), "0 or less");
    require(!eps1 || *eps1 >= 0, "the first of eps", eps1.value_or(0), "0 or more");
    require(eps2 >= 0, "the second of eps", eps2, "0 or more");
    require(options.d() >= 1, "d", options.d(), "1 or more");
    require(options.weight_decay() >= 0, "weight_decay", options.weight_decay(), "0 or more");
  }
}

at::Tensor Adafactor::step(LossClosure closure) {
  return step_each_gradient<AdafactorOptions>(
      *this, "Adafactor", closure,
      [&](const at::Tensor& parameter, const at::Tensor& gradient, const AdafactorOptions& options) {
        update(parameter, gradient, state_of<AdafactorParamState>(*this, parameter), options);
      });
}

void Adafactor::save(torch::serialize::OutputArchive& archive) const {
  torch::optim::serialize<AdafactorParamState, AdafactorOptions>(archive, *this);
}

void Adafactor::load(torch::serialize::InputArchive& archive) {
  torch::optim::serialize<AdafactorParamState, AdafactorOptions>(archive, *this);
}

}  // namespace tandem::optim
