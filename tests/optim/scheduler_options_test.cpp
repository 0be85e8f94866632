// What schedulers refuse, and what only Tandem's have.
#include <cmath>
#include <limits>

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include "support/catch.h"
#include "tandem/tandem.h"

using namespace tandem;
using namespace tandem::optim;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Of two parameter groups, at rate 2.
torch::optim::SGD sgd_of_two_groups() {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (int i = 0; i < 2; ++i) groups.emplace_back(std::vector<at::Tensor>{at::zeros({1})});
  return torch::optim::SGD(groups, torch::optim::SGDOptions(2.0));
}

// What making a scheduler throws, which has to be a ConfigError.
template <class Scheduler>
std::string error_of(typename Scheduler::Options options) {
  auto sgd = sgd_of_two_groups();
  try {
    Scheduler scheduler(sgd, options);
  } catch (const ConfigError& error) {
    CHECK(sgd.param_groups()[0].options().get_lr() == 2.0);
    return error.what();
  }
  return "no error";
}

std::vector<double> rates(LRScheduler& scheduler, int steps) {
  std::vector<double> rates;
  for (int i = 0; i < steps; ++i, scheduler.step()) rates.push_back(scheduler.last_lr()[0]);
  return rates;
}

}  // namespace

TEST_CASE("options out of range are errors that name scheduler, option, value and range") {
  const auto check = [](const std::string& error, const std::string& words) {
    CHECK_THAT(error, ContainsSubstring(words) && ContainsSubstring("use "));
  };
  check(error_of<ConstantLR>({.factor = 0.0}), "ConstantLR: factor 0");
  check(error_of<ConstantLR>({.factor = 1.5}), "ConstantLR: factor 1.5");
  check(error_of<ConstantLR>({.total_iters = 0}), "ConstantLR: total_iters 0");
  check(error_of<StepLR>({}), "StepLR: step_size 0");
  check(error_of<StepLR>({.step_size = 1, .gamma = kNan}), "StepLR: gamma nan");
  check(error_of<MultiStepLR>({.milestones = {3, -1}}), "MultiStepLR: milestone -1");
  check(error_of<MultiStepLR>({.milestones = {3}, .gamma = -1}), "MultiStepLR: gamma -1");
  check(error_of<ExponentialLR>({}), "ExponentialLR: gamma 0");
  check(error_of<LinearLR>({.start_factor = 0.0}), "LinearLR: start_factor 0");
  check(error_of<LinearLR>({.end_factor = 1.1}), "LinearLR: end_factor 1.1");
  check(error_of<LinearLR>({.total_iters = -4}), "LinearLR: total_iters -4");
  check(error_of<PolynomialLR>({.total_iters = 0}), "PolynomialLR: total_iters 0");
  check(error_of<PolynomialLR>({.power = 0.0}), "PolynomialLR: power 0");
  check(error_of<CosineAnnealingLR>({}), "CosineAnnealingLR: T_max 0");
  check(error_of<CosineAnnealingLR>({.T_max = 1, .eta_min = -1}), "CosineAnnealingLR: eta_min -1");
  check(error_of<CosineAnnealingWarmRestarts>({}), "CosineAnnealingWarmRestarts: T_0 0");
  check(error_of<CosineAnnealingWarmRestarts>({.T_0 = 1, .T_mult = 0}), "CosineAnnealingWarmRestarts: T_mult 0");
  check(error_of<LambdaLR>({}), "LambdaLR: lr_lambda has 0 values for 2 parameter groups");
  check(error_of<LambdaLR>({.lr_lambda = {nullptr}}), "LambdaLR: an lr_lambda is empty");
  check(error_of<OneCycleLR>({}), "OneCycleLR: max_lr has 0 values");
  check(error_of<OneCycleLR>({.max_lr = {1}}), "OneCycleLR: total_steps 0");
  check(error_of<OneCycleLR>({.max_lr = {1, 0}, .total_steps = 5}), "OneCycleLR: max_lr 0");
  check(error_of<OneCycleLR>({.max_lr = {1}, .total_steps = 5, .pct_start = 1.1}), "OneCycleLR: pct_start 1.1");
  check(error_of<OneCycleLR>({.max_lr = {1}, .total_steps = 5, .pct_start = 0.6, .three_phase = true}),
        "OneCycleLR: pct_start 0.6");
  check(error_of<OneCycleLR>({.max_lr = {1}, .total_steps = 5, .max_momentum = {1}}), "OneCycleLR: max_momentum 1");
  check(error_of<OneCycleLR>({.max_lr = {1}, .total_steps = 5, .div_factor = 0}), "OneCycleLR: div_factor 0");
  const auto constant = stage<ConstantLR>({});
  check(error_of<SequentialLR>({}), "SequentialLR has no schedulers");
  check(error_of<SequentialLR>({.schedulers = {constant}, .milestones = {3}}), "1 milestones for 1");
  check(error_of<SequentialLR>({.schedulers = {constant, constant, constant}, .milestones = {3, 3}}),
        "SequentialLR: milestone 3");
  check(error_of<ReduceLROnPlateau>({.factor = 1.0}), "ReduceLROnPlateau: factor 1");
  check(error_of<ReduceLROnPlateau>({.patience = -1}), "ReduceLROnPlateau: patience -1");
  check(error_of<ReduceLROnPlateau>({.min_lr = {1, 2, 3}}), "ReduceLROnPlateau: min_lr has 3 values for 2");
  check(error_of<ReduceLROnPlateau>({.eps = kNan}), "ReduceLROnPlateau: eps nan");
  CHECK_THROWS_AS(with_warmup(-1, stage<ConstantLR>({})), ConfigError);
}

TEST_CASE("one-cycle moves the momentum of all optimizers that have one, and names the lack of it") {
  const std::vector<at::Tensor> parameters{at::zeros({1})};
  const OneCycleLROptions options{.max_lr = {1}, .total_steps = 10};
  torch::optim::Adam adam(parameters);
  OneCycleLR of_adam(adam, options);
  CHECK(std::get<0>(static_cast<torch::optim::AdamOptions&>(adam.param_groups()[0].options()).betas()) == 0.95);
  torch::optim::RMSprop rmsprop(parameters);
  OneCycleLR of_rmsprop(rmsprop, options);
  CHECK(static_cast<torch::optim::RMSpropOptions&>(rmsprop.param_groups()[0].options()).momentum() == 0.95);
  torch::optim::Adagrad adagrad(parameters);
  CHECK_THROWS_AS(OneCycleLR(adagrad, options), ConfigError);
  OneCycleLR without(adagrad, {.max_lr = {1}, .total_steps = 10, .cycle_momentum = false});
  CHECK(without.last_lr()[0] == Approx(0.04));
}

TEST_CASE("one-cycle ends at its total steps, whatever its phases") {
  const double pct_start = GENERATE(0.0, 0.1, 0.5, 1.0);  // 0.1 and 1 have a phase of no length
  auto sgd = sgd_of_two_groups();
  OneCycleLR scheduler(sgd, {.max_lr = {1}, .total_steps = 10, .pct_start = pct_start});
  for (const double rate : rates(scheduler, 10)) CHECK((rate > 0 && rate <= 1));
  CHECK_THROWS_AS(scheduler.step(), ConfigError);
}

TEST_CASE("warm-up grows linearly to the base rate, and the schedule begins after it") {
  auto sgd = sgd_of_two_groups();
  SequentialLR scheduler(sgd, with_warmup(4, stage<CosineAnnealingLR>({.T_max = 4, .eta_min = 0.2})));
  const std::vector<double> cosine{2, 1.1 + 0.9 * std::sqrt(0.5), 1.1, 1.1 - 0.9 * std::sqrt(0.5), 0.2};
  std::vector<double> expected{0.5, 1, 1.5, 2};
  expected.insert(expected.end(), cosine.begin(), cosine.end());
  const auto seen = rates(scheduler, 9);
  for (std::size_t i = 0; i < 9; ++i) CHECK(seen[i] == Approx(expected[i]));
}

TEST_CASE("a warm-up may have one step or none") {
  for (const std::int64_t steps : {0, 1}) {
    auto sgd = sgd_of_two_groups();
    SequentialLR scheduler(sgd, with_warmup(steps, stage<StepLR>({.step_size = 2, .gamma = 0.5})));
    const auto seen = rates(scheduler, 4);
    CHECK(seen == (steps == 0 ? std::vector<double>{2, 2, 1, 1} : std::vector<double>{2, 2, 2, 1}));
  }
}

TEST_CASE("a sequence may be part of a sequence, and its state goes on") {
  const SequentialLROptions inner{
      .schedulers = {stage<ConstantLR>({.factor = 0.5, .total_iters = 9}), stage<ExponentialLR>({.gamma = 0.5})},
      .milestones = {2}};
  const SequentialLROptions options{.schedulers = {stage<ConstantLR>({.factor = 1.0}), stage<SequentialLR>(inner)},
                                    .milestones = {1}};
  auto sgd = sgd_of_two_groups();
  SequentialLR scheduler(sgd, options);
  const std::vector<double> expected{2, 1, 1, 2, 1, 0.5};
  for (std::size_t stop = 0; stop < expected.size(); ++stop, scheduler.step()) {
    CHECK(scheduler.last_lr()[1] == expected[stop]);
    auto other = sgd_of_two_groups();
    SequentialLR resumed(other, options);
    resumed.load_state(scheduler.state());
    const auto rest = rates(resumed, static_cast<int>(expected.size() - stop));
    CHECK(rest == std::vector<double>(expected.begin() + static_cast<std::ptrdiff_t>(stop), expected.end()));
  }
}

TEST_CASE("a state that does not fit is an error that says why") {
  auto sgd = sgd_of_two_groups();
  torch::optim::SGD one_group({at::zeros({1})}, 1.0);
  CosineAnnealingLR cosine(sgd, {.T_max = 3});
  CosineAnnealingLR smaller(one_group, {.T_max = 3});
  ReduceLROnPlateau plateau(sgd);
  SequentialLR sequence(sgd, with_warmup(2, stage<ConstantLR>({})));
  const auto error = [](Scheduler& scheduler, const SchedulerState& state) -> std::string {
    try {
      scheduler.load_state(state);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "no error";
  };
  CHECK_THAT(error(cosine, {}), ContainsSubstring("no '"));
  CHECK_THAT(error(plateau, cosine.state()), ContainsSubstring("'best'"));
  CHECK_THAT(error(smaller, cosine.state()), ContainsSubstring("2 parameter groups") && ContainsSubstring("has 1"));
  CHECK_THAT(error(sequence, cosine.state()), ContainsSubstring("0 schedulers") && ContainsSubstring("has 2"));
  auto state = cosine.state();
  state.values["last_epoch"] = 1.5;
  CHECK_THAT(error(cosine, state), ContainsSubstring("'last_epoch'") && ContainsSubstring("kind"));
}

TEST_CASE("parameter groups added after the scheduler was made are an error") {
  auto sgd = sgd_of_two_groups();
  StepLR scheduler(sgd, {.step_size = 3});
  sgd.add_param_group(torch::optim::OptimizerParamGroup({at::zeros({1})}));
  CHECK_THROWS_AS(scheduler.step(), ConfigError);
}

TEST_CASE("options in PyTorch's order are those with names, of every scheduler that has an order") {
  const auto same = [](const auto& make, const auto& make_with_names) {
    auto sgd = sgd_of_two_groups(), other = sgd_of_two_groups();
    auto scheduler = make(sgd), named = make_with_names(other);
    CHECK(rates(*scheduler, 12) == rates(*named, 12));
  };
  using torch::optim::Optimizer;
  const auto warm = [](std::int64_t update) { return 1.0 / static_cast<double>(update + 1); };
  same(
      [](Optimizer& o) { return std::make_unique<ConstantLR>(o, 0.5, 3); },
      [](Optimizer& o) { return std::make_unique<ConstantLR>(o, ConstantLROptions{.factor = 0.5, .total_iters = 3}); });
  same([](Optimizer& o) { return std::make_unique<StepLR>(o, 1, 0.5); },
       [](Optimizer& o) { return std::make_unique<StepLR>(o, StepLROptions{.step_size = 1, .gamma = 0.5}); });
  same([](Optimizer& o) { return std::make_unique<StepLR>(o, 4u); },
       [](Optimizer& o) { return std::make_unique<StepLR>(o, StepLROptions{.step_size = 4}); });
  same(
      [](Optimizer& o) {
        return std::make_unique<MultiStepLR>(o, std::vector<int>{2, 5}, 0.5);
      },
      [](Optimizer& o) {
        return std::make_unique<MultiStepLR>(o, MultiStepLROptions{.milestones = {2, 5}, .gamma = 0.5});
      });
  same([](Optimizer& o) { return std::make_unique<ExponentialLR>(o, 0.9f); },
       [](Optimizer& o) { return std::make_unique<ExponentialLR>(o, ExponentialLROptions{.gamma = 0.9f}); });
  same([](Optimizer& o) { return std::make_unique<LinearLR>(o, 0.25, 0.75, 4); },
       [](Optimizer& o) {
         return std::make_unique<LinearLR>(o,
                                           LinearLROptions{.start_factor = 0.25, .end_factor = 0.75, .total_iters = 4});
       });
  same([](Optimizer& o) { return std::make_unique<PolynomialLR>(o, 10, 2.0); },
       [](Optimizer& o) {
         return std::make_unique<PolynomialLR>(o, PolynomialLROptions{.total_iters = 10, .power = 2.0});
       });
  same([](Optimizer& o) { return std::make_unique<CosineAnnealingLR>(o, 8, 0.1); },
       [](Optimizer& o) {
         return std::make_unique<CosineAnnealingLR>(o, CosineAnnealingLROptions{.T_max = 8, .eta_min = 0.1});
       });
  same([](Optimizer& o) { return std::make_unique<CosineAnnealingWarmRestarts>(o, 3, 2, 0.1); },
       [](Optimizer& o) {
         return std::make_unique<CosineAnnealingWarmRestarts>(
             o, CosineAnnealingWarmRestartsOptions{.T_0 = 3, .T_mult = 2, .eta_min = 0.1});
       });
  same([&](Optimizer& o) { return std::make_unique<LambdaLR>(o, warm); },
       [&](Optimizer& o) { return std::make_unique<LambdaLR>(o, LambdaLROptions{.lr_lambda = {warm}}); });
  same([](Optimizer& o) { return std::make_unique<LambdaLR>(o, [](int epoch) { return epoch < 3 ? 1 : 0.5; }); },
       [](Optimizer& o) {
         return std::make_unique<LambdaLR>(
             o, LambdaLROptions{.lr_lambda = {[](std::int64_t update) { return update < 3 ? 1 : 0.5; }}});
       });
}

TEST_CASE("lines that users write for schedulers compile, and mean the same with braces") {
  auto sgd = sgd_of_two_groups();
  const StepLR step(sgd, 1, 0.5), named(sgd, {.step_size = 1});
  const LambdaLR lambda(sgd, [](auto) { return 1.0; }), list(sgd, {.lr_lambda = {[](auto) { return 1.0; }}});
  const MultiStepLR milestones(sgd, {2, 5}, 0.5);
  const ConstantLR constant(sgd, {}), defaults(sgd);
  const ReduceLROnPlateau plateau(sgd, PlateauMode::max, 0.5, 3), least(sgd, {}), options(sgd, {.patience = 3});
  torch::optim::SGD momentum({at::zeros({1})}, torch::optim::SGDOptions(0.1).momentum(0.9));
  const OneCycleLR cycle(momentum, 0.1, 10);
  CHECK(constant.last_lr() == defaults.last_lr());
  CHECK(std::abs(cycle.last_lr()[0] - 0.1 / 25) < 1e-12);
  CHECK_THROWS_AS(StepLR(sgd, 0), ConfigError);
  CHECK_THROWS_AS(LambdaLR(sgd, std::function<double(std::int64_t)>()), ConfigError);
}
