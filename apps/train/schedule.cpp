#include "schedule.h"

#include <cmath>
#include <vector>

namespace train {
namespace {

namespace optim = tandem::optim;

std::int64_t divide_up(std::int64_t number, std::int64_t by) { return (number + by - 1) / by; }

bool has_momentum(const Options& options) {
  return options.optimizer == OptimizerKind::sgd ? options.momentum > 0.0
                                                 : options.optimizer != OptimizerKind::adafactor;
}

// Over `steps` updates, by the comments of SchedulerKind.
optim::SchedulerFactory stage_of(const Options& options, const torch::optim::Optimizer& optimizer, std::int64_t steps) {
  std::vector<double> rates;  // of the groups
  for (const auto& group : optimizer.param_groups()) rates.push_back(group.options().get_lr());
  switch (options.scheduler) {
    case SchedulerKind::step: return optim::stage<optim::StepLR>({.step_size = divide_up(steps, 3)});
    case SchedulerKind::multi_step:
      return optim::stage<optim::MultiStepLR>({.milestones = {divide_up(steps, 2), divide_up(3 * steps, 4)}});
    case SchedulerKind::exponential:
      return optim::stage<optim::ExponentialLR>({.gamma = std::pow(0.01, 1.0 / static_cast<double>(steps))});
    case SchedulerKind::linear:
      return optim::stage<optim::LinearLR>({.start_factor = 1.0, .end_factor = 0.0, .total_iters = steps});
    case SchedulerKind::polynomial: return optim::stage<optim::PolynomialLR>({.total_iters = steps, .power = 2.0});
    case SchedulerKind::cosine: return optim::stage<optim::CosineAnnealingLR>({.T_max = steps});
    case SchedulerKind::cosine_restarts:
      return optim::stage<optim::CosineAnnealingWarmRestarts>({.T_0 = divide_up(steps, 1 + 2 + 4), .T_mult = 2});
    case SchedulerKind::one_cycle:
      return optim::stage<optim::OneCycleLR>(
          {.max_lr = rates, .total_steps = steps, .cycle_momentum = has_momentum(options)});
    default: return optim::stage<optim::ConstantLR>({.factor = 1.0});
  }
}

}  // namespace

Schedule::Schedule(tandem::Accelerator& accelerator, torch::optim::Optimizer& optimizer, const Options& options,
                   std::int64_t total_steps, std::int64_t warmup_steps)
    : prepared_(options.scheduler == SchedulerKind::plateau
                    ? accelerator.prepare(by_loss_.emplace(optimizer, optim::ReduceLROnPlateauOptions{.patience = 1}))
                    : accelerator.prepare(by_updates_.emplace(
                          optimizer, optim::with_warmup(warmup_steps,
                                                        stage_of(options, optimizer, total_steps - warmup_steps))))) {}

void Schedule::step() {
  if (by_updates_) prepared_.step();
}

}  // namespace train
