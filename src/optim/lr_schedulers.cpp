#include "tandem/optim/lr_schedulers.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "optim/check.h"

namespace tandem::optim {
namespace {

using std::numbers::pi;

void require_gamma(const char* name, double gamma) {
  require(gamma > 0.0 && std::isfinite(gamma), name, gamma, "a finite number above 0");
}

void require_eta_min(const char* name, double eta_min) {
  require(eta_min >= 0.0 && std::isfinite(eta_min), name, eta_min, "a finite number of at least 0");
}

}  // namespace

ConstantLR::ConstantLR(torch::optim::Optimizer& optimizer, Options options)
    : LRScheduler(optimizer), options_(options) {
  require(options.factor > 0.0 && options.factor <= 1.0, "ConstantLR: factor", options.factor,
          "a number above 0, at most 1");
  require_count("ConstantLR: total_iters", options.total_iters);
  apply();
}

double ConstantLR::lr_of(std::size_t, double lr) const {
  if (last_epoch() == 0) return lr * options_.factor;
  return last_epoch() == options_.total_iters ? lr * (1.0 / options_.factor) : lr;
}

StepLR::StepLR(torch::optim::Optimizer& optimizer, Options options) : LRScheduler(optimizer), options_(options) {
  require_count("StepLR: step_size", options.step_size);
  require_gamma("StepLR: gamma", options.gamma);
}

double StepLR::lr_of(std::size_t, double lr) const {
  return last_epoch() > 0 && last_epoch() % options_.step_size == 0 ? lr * options_.gamma : lr;
}

MultiStepLR::MultiStepLR(torch::optim::Optimizer& optimizer, Options options)
    : LRScheduler(optimizer), options_(std::move(options)) {
  for (const std::int64_t milestone : options_.milestones) require_count("MultiStepLR: milestone", milestone, 0);
  require_gamma("MultiStepLR: gamma", options_.gamma);
  apply();
}

double MultiStepLR::lr_of(std::size_t, double lr) const {
  const auto times = std::count(options_.milestones.begin(), options_.milestones.end(), last_epoch());
  return lr * std::pow(options_.gamma, static_cast<double>(times));
}

ExponentialLR::ExponentialLR(torch::optim::Optimizer& optimizer, Options options)
    : LRScheduler(optimizer), options_(options) {
  require_gamma("ExponentialLR: gamma", options.gamma);
}

double ExponentialLR::lr_of(std::size_t, double lr) const { return last_epoch() > 0 ? lr * options_.gamma : lr; }

LinearLR::LinearLR(torch::optim::Optimizer& optimizer, Options options) : LRScheduler(optimizer), options_(options) {
  require(options.start_factor > 0.0 && options.start_factor <= 1.0, "LinearLR: start_factor", options.start_factor,
          "a number above 0, at most 1");
  require(options.end_factor >= 0.0 && options.end_factor <= 1.0, "LinearLR: end_factor", options.end_factor, "0 to 1");
  require_count("LinearLR: total_iters", options.total_iters);
  apply();
}

double LinearLR::lr_of(std::size_t, double lr) const {
  if (last_epoch() == 0) return lr * options_.start_factor;
  if (last_epoch() > options_.total_iters) return lr;
  const double rise = options_.end_factor - options_.start_factor;
  return lr * (1.0 + rise / (static_cast<double>(options_.total_iters) * options_.start_factor +
                             static_cast<double>(last_epoch() - 1) * rise));
}

PolynomialLR::PolynomialLR(torch::optim::Optimizer& optimizer, Options options)
    : LRScheduler(optimizer), options_(options) {
  require_count("PolynomialLR: total_iters", options.total_iters);
  require(options.power > 0.0 && std::isfinite(options.power), "PolynomialLR: power", options.power,
          "a finite number above 0");
}

double PolynomialLR::lr_of(std::size_t, double lr) const {
  if (last_epoch() == 0 || last_epoch() > options_.total_iters) return lr;
  const auto total = static_cast<double>(options_.total_iters), t = static_cast<double>(last_epoch());
  return lr * std::pow((1.0 - t / total) / (1.0 - (t - 1.0) / total), options_.power);
}

CosineAnnealingLR::CosineAnnealingLR(torch::optim::Optimizer& optimizer, Options options)
    : LRScheduler(optimizer), options_(options) {
  require_count("CosineAnnealingLR: T_max", options.T_max);
  require_eta_min("CosineAnnealingLR: eta_min", options.eta_min);
}

double CosineAnnealingLR::lr_of(std::size_t group, double lr) const {
  if (last_epoch() == 0) return lr;
  const auto half = static_cast<double>(options_.T_max), t = static_cast<double>(last_epoch());
  // The update before was at the bottom, from where no quotient leads up again.
  if ((last_epoch() - 1 - options_.T_max) % (2 * options_.T_max) == 0)
    return lr + (base_lrs()[group] - options_.eta_min) * (1.0 - std::cos(pi / half)) / 2.0;
  return (1.0 + std::cos(pi * t / half)) / (1.0 + std::cos(pi * (t - 1.0) / half)) * (lr - options_.eta_min) +
         options_.eta_min;
}

CosineAnnealingWarmRestarts::CosineAnnealingWarmRestarts(torch::optim::Optimizer& optimizer, Options options)
    : LRScheduler(optimizer), options_(options) {
  require_count("CosineAnnealingWarmRestarts: T_0", options.T_0);
  require_count("CosineAnnealingWarmRestarts: T_mult", options.T_mult);
  require_eta_min("CosineAnnealingWarmRestarts: eta_min", options.eta_min);
}

CosineAnnealingWarmRestarts::Cycle CosineAnnealingWarmRestarts::cycle() const {
  Cycle cycle{std::max<std::int64_t>(last_epoch(), 0), options_.T_0};
  if (options_.T_mult == 1) return {cycle.done % cycle.length, cycle.length};
  while (cycle.done >= cycle.length) {
    cycle.done -= cycle.length;
    // A cycle longer than any count of updates is never left.
    const bool fits = cycle.length <= std::numeric_limits<std::int64_t>::max() / options_.T_mult;
    cycle.length = fits ? cycle.length * options_.T_mult : std::numeric_limits<std::int64_t>::max();
  }
  return cycle;
}

double CosineAnnealingWarmRestarts::lr_of(std::size_t group, double) const {
  const auto [done, length] = cycle();
  const double cosine = std::cos(pi * static_cast<double>(done) / static_cast<double>(length));
  return options_.eta_min + (base_lrs()[group] - options_.eta_min) * (1.0 + cosine) / 2.0;
}

SchedulerState CosineAnnealingWarmRestarts::state() const {
  SchedulerState state = LRScheduler::state();
  const auto [done, length] = cycle();
  state.values["T_cur"] = done;
  state.values["T_i"] = length;
  return state;
}

LambdaLR::LambdaLR(torch::optim::Optimizer& optimizer, Options options)
    : LRScheduler(optimizer), options_(std::move(options)) {
  require_one_or_each("LambdaLR: lr_lambda", options_.lr_lambda.size(), base_lrs().size());
  for (const auto& lambda : options_.lr_lambda)
    if (!lambda) throw ConfigError("LambdaLR: an lr_lambda is empty; use a function of the update's number");
  apply();
}

double LambdaLR::lr_of(std::size_t group, double) const {
  return base_lrs()[group] * of_group(options_.lr_lambda, group)(last_epoch());
}

}  // namespace tandem::optim
