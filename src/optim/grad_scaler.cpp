#include "tandem/optim/grad_scaler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "optim/check.h"
#include "tandem/core/error.h"

namespace tandem::optim {
namespace {

// One kernel call takes gradients of one device and type.
struct Gradients {
  c10::Device device;
  c10::ScalarType type;
  std::vector<at::Tensor> tensors;
};

std::vector<Gradients> gradients_of(const torch::optim::Optimizer& optimizer) {
  std::vector<Gradients> groups;
  for (const auto& parameters : optimizer.param_groups())
    for (const at::Tensor& parameter : parameters.params()) {
      const at::Tensor& gradient = parameter.grad();
      if (!gradient.defined()) continue;
      const auto type = gradient.scalar_type();
      if (type == at::kHalf)
        throw ConfigError("a parameter of " + c10::str(parameter.sizes()) +
                          " has float16 gradients, which lose what scaling saves; keep the model in float32, mixed "
                          "precision casts it where that is safe");
      const auto matches = [&](const Gradients& g) { return g.device == gradient.device() && g.type == type; };
      auto group = std::find_if(groups.begin(), groups.end(), matches);
      if (group == groups.end()) group = groups.insert(group, {gradient.device(), type, {}});
      const at::Tensor values = gradient.is_sparse() ? gradient._values() : gradient;
      // Tied weights may be listed twice.
      if (std::none_of(group->tensors.begin(), group->tensors.end(),
                       [&](const at::Tensor& known) { return known.is_same(values); }))
        group->tensors.push_back(values);
    }
  return groups;
}

}  // namespace

void GradScaler::check(const GradScalerOptions& options) {
  const auto finite_above = [](double value, double least) {
    return value > least && std::isfinite(static_cast<float>(value));
  };
  require(finite_above(options.init_scale, 0), "grad_scaler.init_scale", options.init_scale, "a number above 0");
  require(finite_above(options.growth_factor, 1), "grad_scaler.growth_factor", options.growth_factor,
          "a number above 1");
  require(options.backoff_factor > 0 && options.backoff_factor < 1, "grad_scaler.backoff_factor",
          options.backoff_factor, "a number above 0 and below 1");
  require_count("grad_scaler.growth_interval", options.growth_interval);
}

GradScaler::GradScaler(const GradScalerOptions& options, c10::Device device, Agree agree)
    : options_(options), agree_(std::move(agree)) {
  check(options);
  scale_ = at::full({}, options.init_scale, at::dtype(at::kFloat).device(device));
  growth_tracker_ = at::zeros({}, at::dtype(at::kInt).device(device));
}

at::Tensor GradScaler::scale(const at::Tensor& loss) const { return loss * scale_; }

GradScaler::Unscaled* GradScaler::find(const torch::optim::Optimizer& optimizer) {
  const auto found = std::find_if(unscaled_.begin(), unscaled_.end(),
                                  [&](const Unscaled& known) { return known.optimizer == &optimizer; });
  return found == unscaled_.end() ? nullptr : &*found;
}

void GradScaler::unscale_(torch::optim::Optimizer& optimizer) {
  if (find(optimizer)) return;
  const at::NoGradGuard no_grad;
  const auto groups = gradients_of(optimizer);
  // The reciprocal in float64, as PyTorch: float32's is inexact under some compilers' options.
  const at::Tensor inverse = scale_.to(at::kDouble).reciprocal().to(at::kFloat);
  at::Tensor found_inf = at::zeros_like(scale_);
  for (const Gradients& group : groups) {
    at::Tensor found_here = found_inf.to(group.device);
    at::_amp_foreach_non_finite_check_and_unscale_(group.tensors, found_here, inverse.to(group.device));
    if (!found_here.is_same(found_inf)) found_inf.copy_(found_here);
  }
  unscaled_.push_back({&optimizer, found_inf});
}

bool GradScaler::step(torch::optim::Optimizer& optimizer, const std::function<void()>& take_step) {
  unscale_(optimizer);
  Unscaled& unscaled = *find(optimizer);
  if (unscaled.stepped)
    throw ConfigError(
        "a second step of one optimizer with the same gradients, which mixed precision fp16 has scaled "
        "back once; call backward before each step");
  unscaled.stepped = true;
  if (agree_) agree_(unscaled.found_inf);
  const bool finite = unscaled.found_inf.item<float>() == 0;
  if (finite) take_step();
  return finite;
}

bool GradScaler::step(torch::optim::Optimizer& optimizer) {
  return step(optimizer, [&optimizer] { optimizer.step(); });
}

void GradScaler::rescale_kept(const std::vector<const torch::optim::Optimizer*>& optimizers) {
  const at::NoGradGuard no_grad;
  std::vector<Scaled> scaled;
  for (const torch::optim::Optimizer* optimizer : optimizers) {
    const auto known =
        std::find_if(scaled_.begin(), scaled_.end(), [&](const Scaled& one) { return one.optimizer == optimizer; });
    if (known != scaled_.end()) {
      const at::Tensor factor = known->scale.defined() ? scale_ / known->scale : scale_;
      for (const Gradients& group : gradients_of(*optimizer)) at::_foreach_mul_(group.tensors, factor.to(group.device));
    }
    scaled.push_back({optimizer, scale_.clone()});
  }
  scaled_ = std::move(scaled);
  has_rescaled_ = true;
}

// What was unscaled is kept so.
void GradScaler::end_iteration() {
  for (Scaled& one : scaled_)
    if (find(*one.optimizer)) one.scale.reset();
  unscaled_.clear();
  has_rescaled_ = false;
}

void GradScaler::gradients_dropped(const torch::optim::Optimizer& optimizer) {
  std::erase_if(unscaled_, [&](const Unscaled& known) { return known.optimizer == &optimizer && !known.stepped; });
}

bool GradScaler::has_stepped() const {
  return std::any_of(unscaled_.begin(), unscaled_.end(), [](const Unscaled& known) { return known.stepped; });
}

void GradScaler::adapt(at::Tensor& scale, at::Tensor& growth_tracker) const {
  at::Tensor found_inf = at::zeros_like(scale_);
  // What was unscaled without a step has been agreed on by no ranks.
  for (const Unscaled& known : unscaled_)
    if (known.stepped) found_inf += known.found_inf;
  at::_amp_update_scale_(scale, growth_tracker, found_inf, options_.growth_factor, options_.backoff_factor,
                         options_.growth_interval);
}

void GradScaler::update() {
  if (!has_stepped()) throw ConfigError("an update of the scale without a step before it; call step first");
  adapt(scale_, growth_tracker_);
  end_iteration();
}

void GradScaler::begin_iteration() {
  if (has_stepped()) update();
  end_iteration();
}

double GradScaler::get_scale() const { return scale_.item<double>(); }

GradScalerState GradScaler::state() const {
  at::Tensor scale = scale_.clone(), growth_tracker = growth_tracker_.clone();
  if (has_stepped()) adapt(scale, growth_tracker);
  return {.scale = scale.item<double>(),
          .growth_factor = options_.growth_factor,
          .backoff_factor = options_.backoff_factor,
          .growth_interval = options_.growth_interval,
          .growth_tracker = growth_tracker.item<std::int64_t>()};
}

void GradScaler::load_state(const GradScalerState& state) {
  const GradScalerOptions options{.init_scale = state.scale,
                                  .growth_factor = state.growth_factor,
                                  .backoff_factor = state.backoff_factor,
                                  .growth_interval = state.growth_interval};
  try {
    check(options);
    require_count("grad_scaler.growth_tracker", state.growth_tracker, 0);
  } catch (const ConfigError& error) {
    throw CheckpointError(std::string("the state of a scaler is damaged: ") + error.what());
  }
  options_ = options;
  scale_.fill_(state.scale);
  growth_tracker_.fill_(state.growth_tracker);
  end_iteration();
}

}  // namespace tandem::optim
