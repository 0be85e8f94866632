// GradScaler against numbers that PyTorch recorded (data/record_grad_scaler.py says how), and what it refuses.
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>

#include <torch/optim/sgd.h>
#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "tandem/core/error.h"
#include "tandem/optim/grad_scaler.h"

using namespace tandem;
using Json = nlohmann::json;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const Json& scaler_recording() {
  static const Json json = [] {
    std::ifstream file(std::string(std::getenv("TANDEM_SOURCE_DIR")) + "/tests/optim/data/grad_scaler.json");
    return Json::parse(file);
  }();
  return json;
}

double number(const Json& value) {
  if (value.is_null()) return kInfinity;
  return value.is_string() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

optim::GradScalerOptions options_of(const Json& given) {
  optim::GradScalerOptions options;
  options.init_scale = given.value("init_scale", options.init_scale);
  options.growth_factor = given.value("growth_factor", options.growth_factor);
  options.backoff_factor = given.value("backoff_factor", options.backoff_factor);
  options.growth_interval = given.value("growth_interval", options.growth_interval);
  return options;
}

torch::optim::SGD sgd_over(std::size_t parameters) {
  std::vector<at::Tensor> tensors;
  for (std::size_t i = 0; i < parameters; ++i) tensors.push_back(at::ones({}).requires_grad_());
  return torch::optim::SGD(tensors, 0.1);
}

std::vector<at::Tensor>& parameters_of(torch::optim::Optimizer& optimizer) {
  return optimizer.param_groups()[0].params();
}

// The loss whose gradients `gradients` are.
at::Tensor loss_of(std::vector<torch::optim::SGD>& optimizers, const Json& gradients) {
  at::Tensor loss = at::zeros({});
  for (std::size_t o = 0; o < optimizers.size(); ++o)
    for (std::size_t p = 0; p < gradients[o].size(); ++p)
      loss = loss + parameters_of(optimizers[o])[p] * at::full({}, number(gradients[o][p]), at::kFloat);
  return loss;
}

std::string text_of_config_error(const std::function<void()>& body) {
  try {
    body();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no ConfigError";
}

}  // namespace

TEST_CASE("scales, growth, skipped steps and weights are those of PyTorch's GradScaler") {
  const auto& cases = scaler_recording()["cases"];
  const auto number_of_case = GENERATE(range(0, 5));
  REQUIRE(cases.size() == 5);
  const Json& recorded = cases[static_cast<std::size_t>(number_of_case)];
  CAPTURE(recorded["options"].dump());
  optim::GradScaler scaler(options_of(recorded["options"]));
  std::vector<torch::optim::SGD> optimizers;
  for (const auto& row : recorded["iterations"][0]["gradients"]) optimizers.push_back(sgd_over(row.size()));
  for (const auto& iteration : recorded["iterations"]) {
    CAPTURE(iteration.dump());
    scaler.scale(loss_of(optimizers, iteration["gradients"])).backward();
    for (std::size_t o = 0; o < optimizers.size(); ++o) {
      if (recorded.contains("clip")) {
        scaler.unscale_(optimizers[o]);
        double squares = 0;
        for (const auto& parameter : parameters_of(optimizers[o]))
          squares += std::pow(parameter.grad().item<double>(), 2);
        const double norm = std::sqrt(squares);
        CHECK(norm == Approx(number(iteration["norms"][o])));
        for (const auto& parameter : parameters_of(optimizers[o]))
          parameter.grad().mul_(std::min(1.0, recorded["clip"].get<double>() / norm));
      }
      CHECK(scaler.step(optimizers[o]) == !iteration["skipped"][o].get<bool>());
    }
    const auto ends_here = scaler.state();
    scaler.update();
    CHECK(scaler.state() == ends_here);
    CHECK(scaler.get_scale() == iteration["scale"].get<double>());
    CHECK(scaler.state().growth_tracker == iteration["growth_tracker"].get<std::int64_t>());
    for (std::size_t o = 0; o < optimizers.size(); ++o) {
      for (std::size_t p = 0; p < parameters_of(optimizers[o]).size(); ++p)
        CHECK(parameters_of(optimizers[o])[p].item<float>() ==
              Approx(iteration["weights"][o][p].get<float>()).epsilon(1e-6));
      optimizers[o].zero_grad();
    }
  }
}

TEST_CASE("a scaler's defaults are PyTorch's, and a state goes on where it stood") {
  optim::GradScaler scaler({});
  const Json& defaults = scaler_recording()["defaults"];
  CHECK(scaler.state() == optim::GradScalerState{.scale = defaults["scale"],
                                                 .growth_factor = defaults["growth_factor"],
                                                 .backoff_factor = defaults["backoff_factor"],
                                                 .growth_interval = defaults["growth_interval"],
                                                 .growth_tracker = defaults["_growth_tracker"]});
  // One iteration before it grows.
  scaler.load_state(
      {.scale = 8, .growth_factor = 4, .backoff_factor = 0.5, .growth_interval = 10, .growth_tracker = 9});
  auto sgd = sgd_over(1);
  scaler.scale(parameters_of(sgd)[0] * 2).backward();
  CHECK(parameters_of(sgd)[0].grad().item<float>() == 16);
  CHECK(scaler.step(sgd));
  CHECK(scaler.get_scale() == 8);
  scaler.update();
  CHECK(scaler.state() ==
        optim::GradScalerState{
            .scale = 32, .growth_factor = 4, .backoff_factor = 0.5, .growth_interval = 10, .growth_tracker = 0});
  CHECK_THROWS_AS(scaler.load_state({}), CheckpointError);
  CHECK(scaler.get_scale() == 32);
}

TEST_CASE("gradients are unscaled once an iteration, and anew when they were dropped before a step") {
  optim::GradScaler scaler({.init_scale = 4});
  auto sgd = sgd_over(1);
  const auto& weight = parameters_of(sgd)[0];
  scaler.scale(weight * 3).backward();
  scaler.unscale_(sgd);
  scaler.unscale_(sgd);
  CHECK(weight.grad().item<float>() == 3);
  sgd.zero_grad();
  scaler.gradients_dropped(sgd);
  scaler.scale(weight * 5).backward();
  CHECK(scaler.step(sgd));
  CHECK(weight.grad().item<float>() == 5);
}

TEST_CASE("sparse gradients and gradients of several types are unscaled and looked at") {
  const bool finite = GENERATE(true, false);
  optim::GradScaler scaler({.init_scale = 4});
  std::vector<at::Tensor> parameters{at::zeros({3}).requires_grad_(), at::zeros({2}, at::kDouble).requires_grad_(),
                                     at::zeros({4, 2}).requires_grad_()};
  torch::optim::SGD sgd(parameters, 1.0);
  parameters[0].mutable_grad() = at::full({3}, 8.0F);
  parameters[1].mutable_grad() = at::full({2}, finite ? 12.0 : kInfinity, at::kDouble);
  const auto rows = at::arange(2, at::kLong).reshape({1, 2});
  parameters[2].mutable_grad() = at::sparse_coo_tensor(rows, at::full({2, 2}, 16.0F), {4, 2}, at::kFloat);
  CHECK(scaler.step(sgd, [] {}) == finite);
  CHECK(at::equal(parameters[0].grad(), at::full({3}, 2.0F)));
  CHECK(at::equal(parameters[1].grad(), at::full({2}, finite ? 3.0 : kInfinity, at::kDouble)));
  CHECK(at::equal(parameters[2].grad().to_dense().sum(1), at::tensor({8.0F, 8.0F, 0.0F, 0.0F})));
}

TEST_CASE("what a scaler cannot do is an error that says what would be right") {
  auto sgd = sgd_over(1);
  const auto weight = parameters_of(sgd)[0];
  const auto error_with = [](optim::GradScalerOptions options) {
    return text_of_config_error([&] { optim::GradScaler{options}; });
  };
  CHECK_THAT(error_with({.init_scale = 0}), ContainsSubstring("init_scale 0 is out of range; use a number above 0"));
  CHECK_THAT(error_with({.init_scale = 1e39}), ContainsSubstring("init_scale"));  // no float32
  CHECK_THAT(error_with({.growth_factor = 1}), ContainsSubstring("growth_factor 1 is out of range"));
  CHECK_THAT(error_with({.backoff_factor = 1}), ContainsSubstring("backoff_factor 1 is out of range"));
  CHECK_THAT(error_with({.growth_interval = 0}), ContainsSubstring("growth_interval 0 is out of range; use 1 or more"));

  optim::GradScaler scaler({});
  CHECK_THAT(text_of_config_error([&] { scaler.update(); }), ContainsSubstring("call step first"));
  scaler.scale(weight * 1).backward();
  scaler.step(sgd);
  CHECK_THAT(text_of_config_error([&] { scaler.step(sgd); }), ContainsSubstring("call backward before each step"));

  torch::optim::SGD half({at::ones({2}, at::kHalf).requires_grad_()}, 0.1);
  parameters_of(half)[0].mutable_grad() = at::ones({2}, at::kHalf);
  CHECK_THAT(text_of_config_error([&] { scaler.unscale_(half); }), ContainsSubstring("keep the model in float32"));
}
