// Schedulers against numbers that PyTorch recorded; data/record_schedulers.py says how.
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "tandem/tandem.h"

using namespace tandem;
using Json = nlohmann::json;

namespace {

const Json& scheduler_recording() {
  static const Json json = [] {
    std::ifstream file(std::string(std::getenv("TANDEM_SOURCE_DIR")) + "/tests/optim/data/schedulers.json");
    return Json::parse(file);
  }();
  return json;
}

double metric(std::size_t step) {
  const Json& value = scheduler_recording()["metrics"][step];
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

template <class T>
void take(const Json& options, const char* name, T& value) {
  if (options.contains(name)) value = options[name].get<T>();
}

std::function<double(std::int64_t)> lambda(const std::string& name) {
  if (name == "power") return [](std::int64_t epoch) { return std::pow(0.95, static_cast<double>(epoch)); };
  return [](std::int64_t epoch) { return 1.0 / static_cast<double>(1 + epoch); };
}

optim::OneCycleLROptions one_cycle_options(const Json& given) {
  optim::OneCycleLROptions options;
  take(given, "max_lr", options.max_lr);
  take(given, "total_steps", options.total_steps);
  take(given, "pct_start", options.pct_start);
  if (given.value("anneal_strategy", "cos") == "linear") options.anneal_strategy = optim::AnnealStrategy::linear;
  take(given, "cycle_momentum", options.cycle_momentum);
  take(given, "base_momentum", options.base_momentum);
  take(given, "max_momentum", options.max_momentum);
  take(given, "div_factor", options.div_factor);
  take(given, "final_div_factor", options.final_div_factor);
  take(given, "three_phase", options.three_phase);
  return options;
}

optim::ReduceLROnPlateauOptions plateau_options(const Json& given) {
  optim::ReduceLROnPlateauOptions options;
  if (given.value("mode", "min") == "max") options.mode = optim::PlateauMode::max;
  take(given, "factor", options.factor);
  take(given, "patience", options.patience);
  take(given, "threshold", options.threshold);
  if (given.value("threshold_mode", "rel") == "abs") options.threshold_mode = optim::ThresholdMode::abs;
  take(given, "cooldown", options.cooldown);
  take(given, "min_lr", options.min_lr);
  take(given, "eps", options.eps);
  return options;
}

optim::SchedulerFactory factory(const Json& recorded) {
  const std::string name = recorded["scheduler"];
  const Json& given = recorded["options"];
  if (name == "ConstantLR") {
    optim::ConstantLROptions options;
    take(given, "factor", options.factor);
    take(given, "total_iters", options.total_iters);
    return optim::stage<optim::ConstantLR>(options);
  }
  if (name == "StepLR") {
    optim::StepLROptions options;
    take(given, "step_size", options.step_size);
    take(given, "gamma", options.gamma);
    return optim::stage<optim::StepLR>(options);
  }
  if (name == "MultiStepLR") {
    optim::MultiStepLROptions options;
    take(given, "milestones", options.milestones);
    take(given, "gamma", options.gamma);
    return optim::stage<optim::MultiStepLR>(options);
  }
  if (name == "ExponentialLR") return optim::stage<optim::ExponentialLR>({.gamma = given["gamma"]});
  if (name == "LinearLR") {
    optim::LinearLROptions options;
    take(given, "start_factor", options.start_factor);
    take(given, "end_factor", options.end_factor);
    take(given, "total_iters", options.total_iters);
    return optim::stage<optim::LinearLR>(options);
  }
  if (name == "PolynomialLR") {
    optim::PolynomialLROptions options;
    take(given, "total_iters", options.total_iters);
    take(given, "power", options.power);
    return optim::stage<optim::PolynomialLR>(options);
  }
  if (name == "CosineAnnealingLR")
    return optim::stage<optim::CosineAnnealingLR>({.T_max = given["T_max"], .eta_min = given.value("eta_min", 0.0)});
  if (name == "CosineAnnealingWarmRestarts")
    return optim::stage<optim::CosineAnnealingWarmRestarts>({.T_0 = given["T_0"],
                                                             .T_mult = given.value("T_mult", std::int64_t{1}),
                                                             .eta_min = given.value("eta_min", 0.0)});
  if (name == "LambdaLR") {
    optim::LambdaLROptions options;
    for (const Json& one : given["lr_lambda"]) options.lr_lambda.push_back(lambda(one));
    return optim::stage<optim::LambdaLR>(options);
  }
  if (name == "OneCycleLR") return optim::stage<optim::OneCycleLR>(one_cycle_options(given));
  REQUIRE(name == "SequentialLR");
  optim::SequentialLROptions options;
  for (const Json& child : given["schedulers"]) options.schedulers.push_back(factory(child));
  take(given, "milestones", options.milestones);
  return optim::stage<optim::SequentialLR>(options);
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const std::string& kind = "SGD") {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (int i = 0; i < 2; ++i) groups.emplace_back(std::vector<at::Tensor>{at::zeros({1})});
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  if (kind == "SGD")
    optimizer = std::make_unique<torch::optim::SGD>(groups, torch::optim::SGDOptions(1.0).momentum(0.9));
  else
    optimizer = std::make_unique<torch::optim::AdamW>(groups, torch::optim::AdamWOptions());
  for (std::size_t i = 0; i < 2; ++i)
    optimizer->param_groups()[i].options().set_lr(scheduler_recording()["base_lrs"][i].get<double>());
  return optimizer;
}

double momentum_of(const torch::optim::OptimizerParamGroup& group) {
  if (const auto* sgd = dynamic_cast<const torch::optim::SGDOptions*>(&group.options())) return sgd->momentum();
  return std::get<0>(dynamic_cast<const torch::optim::AdamWOptions&>(group.options()).betas());
}

// An optimizer and its scheduler of either kind, as recorded.
struct Subject {
  explicit Subject(const Json& recorded) : optimizer(make_optimizer(recorded.value("optimizer", "SGD"))) {
    if (recorded["scheduler"] == "ReduceLROnPlateau")
      plateau = std::make_unique<optim::ReduceLROnPlateau>(*optimizer, plateau_options(recorded["options"]));
    else
      by_updates = factory(recorded)(*optimizer);
  }

  optim::Scheduler& scheduler() { return plateau ? static_cast<optim::Scheduler&>(*plateau) : *by_updates; }

  void step() {
    if (plateau)
      plateau->step(metric(static_cast<std::size_t>(plateau->last_epoch())));
    else
      by_updates->step();
  }

  // Rates, then momenta, by parameter group.
  std::vector<double> numbers() {
    std::vector<double> numbers = scheduler().last_lr();
    for (const auto& group : optimizer->param_groups()) numbers.push_back(momentum_of(group));
    return numbers;
  }

  std::unique_ptr<torch::optim::Optimizer> optimizer;
  std::unique_ptr<optim::LRScheduler> by_updates;
  std::unique_ptr<optim::ReduceLROnPlateau> plateau;
};

optim::SchedulerState state_of(const Json& recorded) {
  optim::SchedulerState state;
  for (const auto& [name, value] : recorded.items()) {
    if (name == "_schedulers")
      for (const Json& child : value) state.schedulers.push_back(state_of(child));
    else if (value.is_array())
      state.values[name] = value.get<std::vector<double>>();
    else if (value.is_number_integer())
      state.values[name] = value.get<std::int64_t>();
    else
      state.values[name] = value.get<double>();
  }
  return state;
}

bool agree(double ours, double theirs) { return std::abs(ours - theirs) <= 1e-12 * std::abs(theirs); }

void check_from(std::size_t step, Subject& subject, const Json& recorded) {
  for (const Json& lrs = recorded["lrs"]; step < lrs.size(); ++step) {
    const auto numbers = subject.numbers();
    for (std::size_t group = 0; group < 2; ++group) {
      CAPTURE(step, group, numbers[group], lrs[step][group]);
      CHECK(agree(numbers[group], lrs[step][group]));
      if (recorded.contains("momenta")) CHECK(agree(numbers[2 + group], recorded["momenta"][step][group]));
    }
    if (step + 1 < lrs.size()) subject.step();
  }
}

// Leaves out the rates, which check_from compares.
void check_same(const optim::SchedulerState& ours, const optim::SchedulerState& theirs) {
  for (const auto& [name, value] : ours.values) {
    if (name == "_last_lr") continue;
    CAPTURE(name);
    REQUIRE(theirs.values.count(name) == 1);
    CHECK((value == theirs.values.at(name)));
  }
}

}  // namespace

TEST_CASE("every rate and momentum is PyTorch's") {
  for (const Json& recorded : scheduler_recording()["cases"]) {
    CAPTURE(recorded["scheduler"], recorded["options"]);
    Subject subject(recorded);
    REQUIRE(recorded["lrs"].size() == 61);
    check_from(0, subject, recorded);
  }
}

TEST_CASE("a scheduler goes on from PyTorch's state") {
  for (const Json& recorded : scheduler_recording()["cases"]) {
    CAPTURE(recorded["scheduler"], recorded["options"]);
    Subject subject(recorded);
    subject.scheduler().load_state(state_of(recorded["state"]));
    check_from(30, subject, recorded);
  }
}

TEST_CASE("the state has PyTorch's names and values") {
  for (const Json& recorded : scheduler_recording()["cases"]) {
    CAPTURE(recorded["scheduler"], recorded["options"]);
    Subject subject(recorded);
    for (int step = 0; step < 30; ++step) subject.step();
    const optim::SchedulerState state = subject.scheduler().state();
    const optim::SchedulerState theirs = state_of(recorded["state"]);
    check_same(state, theirs);
    REQUIRE(state.schedulers.size() == theirs.schedulers.size());
    for (std::size_t i = 0; i < state.schedulers.size(); ++i) check_same(state.schedulers[i], theirs.schedulers[i]);
  }
}

TEST_CASE("a scheduler that takes over a state at any step goes on to the bit, momenta included") {
  for (const Json& recorded : scheduler_recording()["cases"]) {
    CAPTURE(recorded["scheduler"], recorded["options"]);
    std::vector<optim::SchedulerState> states;
    std::vector<std::vector<double>> numbers;
    Subject never_stopped(recorded);
    for (int step = 0; step <= 60; ++step) {
      states.push_back(never_stopped.scheduler().state());
      numbers.push_back(never_stopped.numbers());
      if (step < 60) never_stopped.step();
    }
    for (std::size_t stop = 0; stop <= 60; ++stop) {
      CAPTURE(stop);
      Subject resumed(recorded);
      resumed.scheduler().load_state(states[stop]);
      bool same = true;
      for (std::size_t step = stop; same && step <= 60; ++step) {
        same = resumed.numbers() == numbers[step] && resumed.scheduler().state() == states[step];
        if (step < 60) resumed.step();
      }
      CHECK(same);
    }
  }
}
