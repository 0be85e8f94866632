#include "tandem/optim/lion.h"

#include <utility>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/optim/serialize.h>

#include "nn/tensor_layout.h"
#include "optim/check.h"
#include "optim/each_gradient.h"

namespace tandem::optim {
namespace {

constexpr std::int64_t kGrain = 1 << 15;  // elements that are worth a thread

// Both run over memory in order.
bool suits_one_pass(const at::Tensor& parameter, const at::Tensor& gradient, const at::Tensor& average) {
  const auto type = parameter.scalar_type();
  const auto fits = [&](const at::Tensor& tensor) {
    return tensor.layout() == at::kStrided && tensor.scalar_type() == type && tensor.is_cpu() &&
           nn::same_order_in_memory(tensor, parameter);
  };
  return (type == at::kFloat || type == at::kDouble) && parameter.is_cpu() && parameter.layout() == at::kStrided &&
         parameter.is_non_overlapping_and_dense() && fits(gradient) && fits(average);
}

template <class T>
void update_in_one_pass(const at::Tensor& parameter, const at::Tensor& gradient, const at::Tensor& average,
                        const LionOptions& options) {
  const T of_direction = static_cast<T>(1 - std::get<0>(options.betas()));
  const T of_mean = static_cast<T>(1 - std::get<1>(options.betas()));
  const T rate = static_cast<T>(options.lr()), kept = static_cast<T>(1 - options.lr() * options.weight_decay());
  const T* const g = gradient.const_data_ptr<T>();
  T* const p = parameter.mutable_data_ptr<T>();
  T* const m = average.mutable_data_ptr<T>();
  at::parallel_for(0, parameter.numel(), kGrain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T direction = m[i] + of_direction * (g[i] - m[i]);
      p[i] = p[i] * kept - rate * static_cast<T>((direction > 0) - (direction < 0));
      m[i] = m[i] + of_mean * (g[i] - m[i]);
    }
  });
  parameter.unsafeGetTensorImpl()->bump_version();
  average.unsafeGetTensorImpl()->bump_version();
}

void update(const at::Tensor& weights, const at::Tensor& gradient, const at::Tensor& mean, const LionOptions& options) {
  if (suits_one_pass(weights, gradient, mean)) {
    if (weights.scalar_type() == at::kFloat)
      update_in_one_pass<float>(weights, gradient, mean, options);
    else
      update_in_one_pass<double>(weights, gradient, mean, options);
    return;
  }
  at::Tensor parameter = weights, average = mean;
  const auto [beta1, beta2] = options.betas();
  const at::Tensor direction = average.lerp(gradient, 1 - beta1).sign_();
  parameter.mul_(1 - options.lr() * options.weight_decay()).sub_(direction, options.lr());
  average.lerp_(gradient, 1 - beta2);
}

}  // namespace

void LionOptions::serialize(torch::serialize::OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(lr);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(betas);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(weight_decay);
}

void LionOptions::serialize(torch::serialize::InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, lr);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(Betas, betas);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, weight_decay);
}

void LionParamState::serialize(torch::serialize::OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(exp_avg);
}

void LionParamState::serialize(torch::serialize::InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(at::Tensor, exp_avg);
}

Lion::Lion(const std::vector<torch::optim::OptimizerParamGroup>& groups, LionOptions defaults)
    : Optimizer(groups, std::make_unique<LionOptions>(defaults)) {
  for (const auto& group : param_groups()) {
    const auto& options = static_cast<const LionOptions&>(group.options());
    const auto [beta1, beta2] = options.betas();
    require(options.lr() >= 0, "lr", options.lr(), "0 or more");
    require(beta1 >= 0 && beta1 < 1, "the first of betas", beta1, "0 to below 1");
    require(beta2 >= 0 && beta2 < 1, "the second of betas", beta2, "0 to below 1");
    require(options.weight_decay() >= 0, "weight_decay", options.weight_decay(), "0 or more");
  }
}

at::Tensor Lion::step(LossClosure closure) {
  return step_each_gradient<LionOptions>(
      *this, "Lion", closure, [&](const at::Tensor& parameter, const at::Tensor& gradient, const LionOptions& options) {
        auto& state = state_of<LionParamState>(*this, parameter);
        if (!state.exp_avg().defined())
          state.exp_avg(at::zeros_like(parameter, parameter.options().requires_grad(false)));
        update(parameter, gradient, state.exp_avg(), options);
      });
}

void Lion::save(torch::serialize::OutputArchive& archive) const {
  torch::optim::serialize<LionParamState, LionOptions>(archive, *this);
}

void Lion::load(torch::serialize::InputArchive& archive) {
  torch::optim::serialize<LionParamState, LionOptions>(archive, *this);
}

}  // namespace tandem::optim
