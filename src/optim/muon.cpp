#include "tandem/optim/muon.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/Functions.h>
#include <torch/optim/serialize.h>

#include "optim/check.h"
#include "optim/each_gradient.h"

namespace tandem::optim {
namespace {

// Five steps of X <- a X + (b X X' + c (X X')²) X, which bring all singular values near 1.
at::Tensor orthogonalized(const at::Tensor& update, double eps) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
  constexpr int kSteps = 5;
  const bool tall = update.size(0) > update.size(1);
  at::Tensor x = update.to(at::kBFloat16, /*non_blocking=*/false, /*copy=*/true);
  if (tall) x = x.t();
  x.div_(x.norm().clamp_min(eps));
  for (int i = 0; i < kSteps; ++i) {
    const at::Tensor gram = x.mm(x.t());
    x = at::addmm(x, at::addmm(gram, gram, gram, kB, kC), x, kA, 1);
  }
  return tall ? x.t() : x;
}

double adjusted(const MuonOptions& options, const at::Tensor& matrix) {
  const auto a = static_cast<double>(matrix.size(0)), b = static_cast<double>(matrix.size(1));
  if (options.adjust_lr_fn() == MuonRate::match_rms_adamw) return options.lr() * 0.2 * std::sqrt(std::max(a, b));
  return options.lr() * std::sqrt(std::max(1.0, a / b));
}

void update_matrix(at::Tensor parameter, const at::Tensor& gradient, MuonParamState& state,
                   const MuonOptions& options) {
  if (!state.momentum_buffer().defined())
    state.momentum_buffer(at::zeros_like(parameter, parameter.options().requires_grad(false)));
  at::Tensor mean = state.momentum_buffer();
  mean.lerp_(gradient, 1 - options.momentum());
  const at::Tensor update = options.nesterov() ? gradient.lerp(mean, options.momentum()) : mean;
  const at::Tensor direction = orthogonalized(update, options.eps());
  parameter.mul_(1 - options.lr() * options.weight_decay());
  parameter.add_(direction, -adjusted(options, parameter));
}

void update_by_adamw(at::Tensor parameter, const at::Tensor& gradient, MuonParamState& state,
                     const MuonOptions& options) {
  const auto zeros = [&] { return at::zeros_like(parameter, parameter.options().requires_grad(false)); };
  if (!state.exp_avg().defined()) state.exp_avg(zeros());
  if (!state.exp_avg_sq().defined()) state.exp_avg_sq(zeros());
  state.step(state.step() + 1);
  at::Tensor mean = state.exp_avg(), mean_of_squares = state.exp_avg_sq();
  const auto [beta1, beta2] = options.adamw_betas();
  const auto step = static_cast<double>(state.step());
  parameter.mul_(1 - options.lr() * options.weight_decay());
  mean.lerp_(gradient, 1 - beta1);
  mean_of_squares.mul_(beta2).addcmul_(gradient, gradient, 1 - beta2);
  const at::Tensor spread = mean_of_squares.sqrt().div_(std::sqrt(1 - std::pow(beta2, step))).add_(options.adamw_eps());
  parameter.addcdiv_(mean, spread, -options.lr() / (1 - std::pow(beta1, step)));
}

}  // namespace

void MuonOptions::serialize(torch::serialize::OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(lr);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(weight_decay);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(momentum);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(nesterov);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(eps);
  archive.write("adjust_lr_fn", c10::IValue(static_cast<std::int64_t>(adjust_lr_fn())));
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(orthogonalize);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(adamw_betas);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(adamw_eps);
}

void MuonOptions::serialize(torch::serialize::InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, lr);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, weight_decay);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, momentum);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(bool, nesterov);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, eps);
  c10::IValue rate;
  archive.read("adjust_lr_fn", rate);
  adjust_lr_fn(static_cast<MuonRate>(rate.toInt()));
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(bool, orthogonalize);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(Betas, adamw_betas);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, adamw_eps);
}

void MuonParamState::serialize(torch::serialize::OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(momentum_buffer);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(step);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(exp_avg);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(exp_avg_sq);
}

void MuonParamState::serialize(torch::serialize::InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(at::Tensor, momentum_buffer);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(std::int64_t, step);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(at::Tensor, exp_avg);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(at::Tensor, exp_avg_sq);
}

Muon::Muon(const std::vector<torch::optim::OptimizerParamGroup>& groups, MuonOptions defaults)
    : Optimizer(groups, std::make_unique<MuonOptions>(defaults)) {
  for (const auto& group : param_groups()) {
    const auto& options = static_cast<const MuonOptions&>(group.options());
    const auto [beta1, beta2] = options.adamw_betas();
    require(options.lr() >= 0, "lr", options.lr(), "0 or more");
    require(options.weight_decay() >= 0, "weight_decay", options.weight_decay(), "0 or more");
    require(options.momentum() >= 0 && options.momentum() <= 1, "momentum", options.momentum(), "0 to 1");
    require(options.eps() > 0, "eps", options.eps(), "more than 0");
    require(beta1 >= 0 && beta1 < 1, "the first of adamw_betas", beta1, "0 to below 1");
    require(beta2 >= 0 && beta2 < 1, "the second of adamw_betas", beta2, "0 to below 1");
    require(options.adamw_eps() >= 0, "adamw_eps", options.adamw_eps(), "0 or more");
  }
}

at::Tensor Muon::step(LossClosure closure) {
  return step_each_gradient<MuonOptions>(
      *this, "Muon", closure, [&](const at::Tensor& parameter, const at::Tensor& gradient, const MuonOptions& options) {
        auto& state = state_of<MuonParamState>(*this, parameter);
        if (parameter.dim() == 2 && options.orthogonalize())
          update_matrix(parameter, gradient, state, options);
        else
          update_by_adamw(parameter, gradient, state, options);
      });
}

void Muon::save(torch::serialize::OutputArchive& archive) const {
  torch::optim::serialize<MuonParamState, MuonOptions>(archive, *this);
}

void Muon::load(torch::serialize::InputArchive& archive) {
  torch::optim::serialize<MuonParamState, MuonOptions>(archive, *this);
}

}  // namespace tandem::optim
