#include "tandem/optim/one_cycle_lr.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "optim/check.h"
#include "optim/momentum.h"

namespace tandem::optim {
namespace {

void check(const OneCycleLROptions& options, std::size_t groups) {
  require_one_or_each("OneCycleLR: max_lr", options.max_lr.size(), groups);
  for (const double lr : options.max_lr)
    require(lr > 0.0 && std::isfinite(lr), "OneCycleLR: max_lr", lr, "a finite number above 0");
  require_count("OneCycleLR: total_steps", options.total_steps);
  const double most = options.three_phase ? 0.5 : 1.0;
  require(options.pct_start >= 0.0 && options.pct_start <= most, "OneCycleLR: pct_start", options.pct_start,
          options.three_phase ? "0 to 0.5 with three_phase" : "0 to 1");
  require(options.div_factor > 0.0, "OneCycleLR: div_factor", options.div_factor, "a number above 0");
  require(options.final_div_factor > 0.0, "OneCycleLR: final_div_factor", options.final_div_factor, "a number above 0");
  if (!options.cycle_momentum) return;
  for (const auto& [name, momenta] : {std::pair("OneCycleLR: base_momentum", &options.base_momentum),
                                      std::pair("OneCycleLR: max_momentum", &options.max_momentum)}) {
    require_one_or_each(name, momenta->size(), groups);
    for (const double momentum : *momenta)
      require(momentum >= 0.0 && momentum < 1.0, name, momentum, "0 or more, below 1");
  }
}

}  // namespace

OneCycleLR::OneCycleLR(torch::optim::Optimizer& optimizer, Options options)
    : LRScheduler(optimizer), options_(std::move(options)) {
  check(options_, base_lrs().size());
  const auto total = static_cast<double>(options_.total_steps);
  phase_ends_.push_back(options_.pct_start * total - 1.0);
  if (options_.three_phase) phase_ends_.push_back(2.0 * options_.pct_start * total - 2.0);
  phase_ends_.push_back(total - 1.0);
  for (std::size_t i = 0; i < base_lrs_.size(); ++i) base_lrs_[i] = of_group(options_.max_lr, i) / options_.div_factor;
  apply();
}

OneCycleLR::Position OneCycleLR::position() const {
  const auto update = static_cast<double>(std::max<std::int64_t>(last_epoch(), 0));
  double start = 0.0;
  std::size_t phase = 0;
  while (phase + 1 < phase_ends_.size() && update > phase_ends_[phase]) start = phase_ends_[phase++];
  const double end = phase_ends_[phase];
  // A phase of no length (PyTorch divides by zero) is done.
  return {phase, end == start ? 1.0 : (update - start) / (end - start)};
}

double OneCycleLR::anneal(double start, double end, double done) const {
  if (options_.anneal_strategy == AnnealStrategy::linear) return (end - start) * done + start;
  return end + (start - end) / 2.0 * (std::cos(std::numbers::pi * done) + 1.0);
}

double OneCycleLR::lr_of(std::size_t group, double) const {
  const double max = of_group(options_.max_lr, group), first = max / options_.div_factor;
  const double last = first / options_.final_div_factor;
  const auto [phase, done] = position();
  const std::array<double, 4> ends{first, max, options_.three_phase ? first : last, last};  // of the phases
  return anneal(ends[phase], ends[phase + 1], done);
}

double OneCycleLR::momentum_of(std::size_t group) const {
  const double base = of_group(options_.base_momentum, group), max = of_group(options_.max_momentum, group);
  const auto [phase, done] = position();
  const std::array<double, 4> ends{max, base, max, max};
  return anneal(ends[phase], ends[phase + 1], done);
}

std::map<std::string, double> OneCycleLR::group_values(std::size_t group) const {
  auto values = LRScheduler::group_values(group);
  values["max_lr"] = of_group(options_.max_lr, group);
  values["min_lr"] = base_lrs_.at(group) / options_.final_div_factor;
  if (!options_.cycle_momentum) return values;
  values["base_momentum"] = of_group(options_.base_momentum, group);
  values["max_momentum"] = of_group(options_.max_momentum, group);
  return values;
}

void OneCycleLR::advance() {
  if (last_epoch() > options_.total_steps)
    throw ConfigError("OneCycleLR of " + std::to_string(options_.total_steps) + " total_steps was stepped " +
                      std::to_string(last_epoch()) + " times; use total_steps of the whole training");
  if (!options_.cycle_momentum) return;
  auto& groups = optimizer().param_groups();
  for (std::size_t i = 0; i < groups.size(); ++i)
    if (!set_momentum(groups[i].options(), momentum_of(i)))
      throw ConfigError("OneCycleLR: the optimizer has no momentum to cycle; use cycle_momentum = false");
}

}  // namespace tandem::optim
