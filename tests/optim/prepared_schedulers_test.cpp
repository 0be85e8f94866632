// What prepare makes of schedulers, ours and LibTorch's.
#include <torch/nn/modules/linear.h>
#include <torch/optim/schedulers/reduce_on_plateau_scheduler.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Rates = std::vector<double>;

torch::optim::SGD make_sgd() { return torch::optim::SGD({torch::zeros({1}, at::kFloat).requires_grad_()}, 1.0); }

double rate(const torch::optim::Optimizer& optimizer) { return optimizer.param_groups()[0].options().get_lr(); }

}  // namespace

TEST_CASE("LibTorch's own scheduler and ours advance once an update") {
  const bool ours = GENERATE(true, false);
  const auto seen = on_ranks<Rates>(2, {.gradient_accumulation_steps = 2}, [&](Accelerator& accelerator) {
    auto sgd = make_sgd();
    optim::StepLR step(sgd, {.step_size = 2, .gamma = 0.5});
    torch::optim::StepLR torch_step(sgd, 2, 0.5);
    auto scheduler = ours ? accelerator.prepare(step) : accelerator.prepare(torch_step);
    Rates rates;
    for (int m = 0; m < 10; ++m) {
      auto window = accelerator.accumulate();
      scheduler.step();
      rates.push_back(rate(sgd));
    }
    return rates;
  });
  // LibTorch's counts its calls from 0, ours and PyTorch's from 1.
  if (ours)
    CHECK(seen[1] == Rates{1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25});
  else
    CHECK(seen[1] == Rates{1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25});
}

TEST_CASE("reduce on plateau, ours or LibTorch's, takes each metric once, outside of windows even while one is open") {
  const bool ours = GENERATE(true, false);
  const auto seen = on_ranks<Rates>(
      2, {.gradient_accumulation_steps = 2, .scheduler_steps_per_update = 2}, [&](Accelerator& accelerator) {
        auto sgd = make_sgd();
        optim::ReduceLROnPlateau plateau(sgd, {.factor = 0.5, .patience = 0});
        torch::optim::ReduceLROnPlateauScheduler torch_plateau(
            sgd, torch::optim::ReduceLROnPlateauScheduler::SchedulerMode::min, 0.5, 0, 1e-4,
            torch::optim::ReduceLROnPlateauScheduler::ThresholdMode::rel, 0, {}, 1e-8, false);
        auto scheduler = ours ? accelerator.prepare(plateau) : accelerator.prepare(torch_plateau);
        { auto window = accelerator.accumulate(); }  // not the last of its window
        Rates rates;
        for (const double metric : {1.0, 1.0, 0.5, 0.5, 0.5}) {
          scheduler.step(metric);
          rates.push_back(rate(sgd));
        }
        rates.push_back(static_cast<double>(scheduler.updates()));
        return rates;
      });
  CHECK(seen[0] == Rates{1, 0.5, 0.5, 0.25, 0.125, 5});
  CHECK(seen[1] == seen[0]);
}

TEST_CASE("within accumulate, reduce on plateau takes the metric of the micro-batch that closes the window") {
  const auto seen = on_ranks<std::int64_t>(2, {.gradient_accumulation_steps = 3}, [](Accelerator& accelerator) {
    auto sgd = make_sgd();
    optim::ReduceLROnPlateau plateau(sgd);
    auto scheduler = accelerator.prepare(plateau);
    for (int m = 0; m < 6; ++m) {
      auto window = accelerator.accumulate();
      scheduler.step(1.0);
    }
    return plateau.last_epoch();
  });
  CHECK(seen[0] == 2);
}

TEST_CASE("a step with a metric where there should be none, or without one, is an error that says which to use") {
  run_ranks(1, [](Accelerator& accelerator) {
    auto sgd = make_sgd();
    optim::ReduceLROnPlateau plateau(sgd);
    optim::ExponentialLR exponential(sgd, {.gamma = 0.5});
    auto [by_metric, by_updates] = accelerator.prepare(plateau, exponential);
    const auto error = [](const std::function<void()>& step) -> std::string {
      try {
        step();
      } catch (const ConfigError& error) {
        return error.what();
      }
      return "no error";
    };
    CHECK_THAT(error([&, &scheduler = by_metric] { scheduler.step(); }), ContainsSubstring("step(metric)"));
    CHECK_THAT(error([&, &scheduler = by_updates] { scheduler.step(1.0); }), ContainsSubstring("use step()"));
  });
}

TEST_CASE("metrics that only some ranks saw in a join are an error, the same number of metrics is none") {
  const bool uneven = GENERATE(true, false);
  const auto body = [&](Accelerator& accelerator) {
    torch::nn::Linear net(1, 1);
    torch::optim::SGD sgd(net->parameters(), 1.0);
    optim::ReduceLROnPlateau plateau(sgd);
    auto [model, scheduler] = accelerator.prepare(net, plateau);
    accelerator.join_uneven_inputs([&, &model = model, &scheduler = scheduler] {
      for (int i = 0; i < 1 + accelerator.rank(); ++i) {
        accelerator.backward(model(torch::ones({1, 1})).sum());
        if (i == 0 || uneven) scheduler.step(1.0);
      }
    });
  };
  if (!uneven) return run_ranks(2, body);
  const auto error = run_ranks_expecting_error(2, body);
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
  CHECK_THAT(error.what(), ContainsSubstring("after join_uneven_inputs"));
}
