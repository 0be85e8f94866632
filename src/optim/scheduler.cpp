#include "tandem/optim/scheduler.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "tandem/core/error.h"

namespace tandem::optim {

CosineLR::CosineLR(torch::optim::Optimizer& optimizer, CosineLROptions options)
    : optimizer_(optimizer), options_(options) {
  if (options.warmup_steps < 0 || options.total_steps <= options.warmup_steps)
    throw ConfigError("CosineLR with warmup_steps " + std::to_string(options.warmup_steps) + " and total_steps " +
                      std::to_string(options.total_steps) + "; use 0 <= warmup_steps < total_steps");
  if (!(options.min_factor >= 0.0 && options.min_factor <= 1.0))
    throw ConfigError("CosineLR with min_factor " + std::to_string(options.min_factor) + "; use 0 to 1");
  for (auto& group : optimizer.param_groups()) base_rates_.push_back(group.options().get_lr());
  apply();
}

void CosineLR::step() {
  update_ += 1;
  apply();
}

void CosineLR::apply() {
  double factor = 0.0;
  if (update_ < options_.warmup_steps) {
    factor = static_cast<double>(update_ + 1) / static_cast<double>(options_.warmup_steps);
  } else {
    const double decay_steps = static_cast<double>(options_.total_steps - options_.warmup_steps);
    const double done = std::min(static_cast<double>(update_ - options_.warmup_steps) / decay_steps, 1.0);
    const double cosine = (1.0 + std::cos(std::numbers::pi * done)) / 2.0;
    factor = options_.min_factor + (1.0 - options_.min_factor) * cosine;
  }
  auto& groups = optimizer_.param_groups();
  for (std::size_t i = 0; i < groups.size(); ++i) groups[i].options().set_lr(base_rates_[i] * factor);
}

}  // namespace tandem::optim
