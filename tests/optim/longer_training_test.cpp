// Schedules that go on from the state of another one: of a shorter training, or over another learning rate.
#include <cmath>
#include <memory>

#include <torch/optim/sgd.h>

#include "optim/state_dict.h"
#include "support/catch.h"
#include "tandem/tandem.h"

using namespace tandem;
using namespace tandem::optim;

namespace {

constexpr std::int64_t kShort = 12, kLong = 40;

// A schedule of the program's own, which says a rate by the one before.
class Halving final : public LRScheduler {
 public:
  struct Options {
    std::int64_t every = 1;
  };
  Halving(torch::optim::Optimizer& optimizer, Options options) : LRScheduler(optimizer), options_(options) {}

 private:
  double lr_of(std::size_t, double lr) const override { return last_epoch() % options_.every == 0 ? lr * 0.5 : lr; }
  Options options_;
};

struct Shape {
  const char* name;
  std::function<SchedulerFactory(std::int64_t total)> over;  // so many updates
};

double part(std::int64_t step, std::int64_t of) { return static_cast<double>(step) / static_cast<double>(of); }

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all{
      {"constant", [](auto total) { return stage<ConstantLR>({.factor = 0.5, .total_iters = total / 2}); }},
      {"step", [](auto total) { return stage<StepLR>({.step_size = total / 3}); }},
      {"multi-step",
       [](auto total) {
         return stage<MultiStepLR>({.milestones = {0, total / 2, total * 3 / 4}});
       }},
      {"exponential", [](auto total) { return stage<ExponentialLR>({.gamma = std::pow(0.01, part(1, total))}); }},
      {"linear",
       [](auto total) { return stage<LinearLR>({.start_factor = 1.0, .end_factor = 0.0, .total_iters = total}); }},
      {"polynomial", [](auto total) { return stage<PolynomialLR>({.total_iters = total, .power = 2.0}); }},
      {"cosine", [](auto total) { return stage<CosineAnnealingLR>({.T_max = total}); }},
      {"cosine-restarts",
       [](auto total) { return stage<CosineAnnealingWarmRestarts>({.T_0 = total / 3, .T_mult = 2}); }},
      {"lambda",
       [](auto total) {
         return stage<LambdaLR>({.lr_lambda = {[total](std::int64_t step) { return 1.0 - 0.9 * part(step, total); }}});
       }},
      {"one-cycle", [](auto total) { return stage<OneCycleLR>({.max_lr = {0.5}, .total_steps = total + 1}); }},
      {"warm-up, of a part of all",
       [](auto total) {
         return stage<SequentialLR>(with_warmup(total / 4, stage<CosineAnnealingLR>({.T_max = total - total / 4})));
       }},
      {"sequence in sequence",
       [](auto total) {
         return stage<SequentialLR>(
             {.schedulers = {stage<ConstantLR>({.factor = 0.5, .total_iters = total}),
                             stage<SequentialLR>(with_warmup(total / 6, stage<PolynomialLR>({.total_iters = total})))},
              .milestones = {total / 5}});
       }},
      {"the program's own", [](auto total) { return stage<Halving>({.every = total / 4}); }},
  };
  return all;
}

struct Scheduled {
  explicit Scheduled(const SchedulerFactory& make, double lr = 0.1)
      : optimizer(
            {torch::optim::OptimizerParamGroup({at::zeros({1})}), torch::optim::OptimizerParamGroup({at::zeros({1})})},
            torch::optim::SGDOptions(lr).momentum(0.9)) {
    optimizer.param_groups()[1].options().set_lr(lr / 4);
    schedule = make(optimizer);
  }

  // Rates and momenta.
  std::vector<double> numbers() {
    std::vector<double> numbers = schedule->last_lr();
    for (auto& group : optimizer.param_groups())
      numbers.push_back(static_cast<torch::optim::SGDOptions&>(group.options()).momentum());
    return numbers;
  }

  void step(std::int64_t steps) {
    for (; steps > 0; --steps) schedule->step();
  }

  torch::optim::SGD optimizer;
  std::unique_ptr<LRScheduler> schedule;
};

// What a file makes of it.
SchedulerState as_file(const SchedulerState& state) { return scheduler_state_of(state_dict(state)); }

// As PyTorch or an older version would have written it.
SchedulerState without_course(SchedulerState state) {
  state.course.clear();
  return state;
}

void check_same_from(Scheduled& training, Scheduled& straight, std::int64_t step, std::int64_t last) {
  for (; step <= last; ++step) {
    CAPTURE(step);
    REQUIRE(training.numbers() == straight.numbers());
    if (step == last) break;
    training.step(1);
    straight.step(1);
  }
}

}  // namespace

TEST_CASE("every schedule that has become longer has the longer one's rates at that step, and from there on") {
  for (const Shape& shape : shapes())
    for (const std::int64_t done : {std::int64_t{0}, std::int64_t{1}, kShort / 2, kShort - 1, kShort}) {
      CAPTURE(shape.name, done);
      Scheduled first(shape.over(kShort)), second(shape.over(kLong)), straight(shape.over(kLong));
      first.step(done);
      straight.step(done);
      second.schedule->load_state(as_file(first.schedule->state()));
      check_same_from(second, straight, done, kLong);
    }
}

TEST_CASE("the same from files that do not say what the schedule had come to by itself") {
  for (const Shape& shape : shapes()) {
    CAPTURE(shape.name);
    Scheduled first(shape.over(kShort)), second(shape.over(kLong)), straight(shape.over(kLong));
    first.step(kShort);
    straight.step(kShort);
    second.schedule->load_state(without_course(first.schedule->state()));
    for (std::size_t i = 0; i < 4; ++i) CHECK(second.numbers()[i] == Approx(straight.numbers()[i]).epsilon(1e-8));
  }
}

TEST_CASE("a schedule that is as it was goes on to the bit, with what somebody else has made of the rates") {
  for (const Shape& shape : shapes())
    for (const double factor : {1.0, 0.5}) {
      CAPTURE(shape.name, factor);
      Scheduled first(shape.over(kLong)), second(shape.over(kLong));
      first.step(kShort);
      for (auto& group : first.optimizer.param_groups()) group.options().set_lr(group.options().get_lr() * factor);
      second.schedule->load_state(as_file(first.schedule->state()));
      CHECK(second.schedule->state() == first.schedule->state());
      check_same_from(second, first, kShort, kLong);
    }
}

TEST_CASE("what somebody else has made of the rates stays as a share of a longer schedule's") {
  Scheduled first(stage<CosineAnnealingLR>({.T_max = 20})), second(stage<CosineAnnealingLR>({.T_max = 40})),
      straight(stage<CosineAnnealingLR>({.T_max = 40}));
  first.step(10);
  straight.step(10);
  for (auto& group : first.optimizer.param_groups()) group.options().set_lr(group.options().get_lr() * 0.5);
  second.schedule->load_state(first.schedule->state());
  CHECK(second.numbers()[0] == Approx(0.5 * straight.numbers()[0]));
  CHECK(second.numbers()[1] == Approx(0.5 * straight.numbers()[1]));
}

TEST_CASE("a training of 10 updates that goes on to 20 does not stay at a rate of 0") {
  Scheduled first(stage<CosineAnnealingLR>({.T_max = 10})), second(stage<CosineAnnealingLR>({.T_max = 20}));
  first.step(10);
  CHECK(first.numbers()[0] < 1e-12);
  second.schedule->load_state(first.schedule->state());
  CHECK(second.numbers()[0] == Approx(0.05));
  second.step(10);
  CHECK(second.numbers()[0] < 1e-12);
}

TEST_CASE("a warm-up that was not there before, or is not any more, is part of the shape") {
  const auto cosine = stage<CosineAnnealingLR>({.T_max = kLong});
  for (const auto& [before, now] : {std::pair(0, 20), std::pair(20, 0)}) {
    const auto of = [&](std::int64_t warmup) { return stage<SequentialLR>(with_warmup(warmup, cosine)); };
    Scheduled first(of(before)), second(of(now)), straight(of(now));
    first.step(kShort);
    straight.step(kShort);
    second.schedule->load_state(as_file(first.schedule->state()));
    check_same_from(second, straight, kShort, kLong);
  }
}

TEST_CASE("another schedule goes on at its own rate, over the learning rate that the training began with") {
  Scheduled first(stage<StepLR>({.step_size = 2}), 0.2), second(stage<CosineAnnealingLR>({.T_max = kLong}), 0.1),
      straight(stage<CosineAnnealingLR>({.T_max = kLong}), 0.2);
  first.step(kShort);
  straight.step(kShort);
  second.schedule->load_state(as_file(first.schedule->state()));
  check_same_from(second, straight, kShort, kLong);
}

TEST_CASE("with rates of its own every schedule goes on as over the program's learning rate") {
  for (const Shape& shape : shapes()) {
    CAPTURE(shape.name);
    Scheduled first(shape.over(kLong), 0.1), second(shape.over(kLong), 0.03), straight(shape.over(kLong), 0.03);
    first.step(kShort);
    straight.step(kShort);
    second.schedule->load_state(second.schedule->with_own_rates(as_file(first.schedule->state())));
    check_same_from(second, straight, kShort, kLong);
  }
}

TEST_CASE("with a rate of its own a ReduceLROnPlateau keeps the share that the metrics have left") {
  const ReduceLROnPlateauOptions options{.factor = 0.5, .patience = 0};
  torch::optim::SGD first({at::zeros({1})}, 0.1), second({at::zeros({1})}, 0.02), third({at::zeros({1})}, 0.02);
  ReduceLROnPlateau before(first, options), kept(second, options), own(third, options);
  for (const double metric : {1.0, 1.0, 1.0}) before.step(metric);
  CHECK(before.last_lr()[0] == Approx(0.025));
  const SchedulerState state = as_file(before.state());
  kept.load_state(state);
  CHECK(kept.last_lr()[0] == before.last_lr()[0]);
  own.load_state(own.with_own_rates(state));
  CHECK(own.last_lr()[0] == Approx(0.005));
  CHECK(own.with_own_rates(own.state()).get<std::vector<double>>("_last_lr")[0] == Approx(0.005));
}

TEST_CASE("a state of an impossible number of updates is an error, and a state that a schedule cannot reach too") {
  Scheduled training(stage<CosineAnnealingLR>({.T_max = kLong})),
      cycle(stage<OneCycleLR>({.max_lr = {0.5}, .total_steps = 10}));
  auto state = training.schedule->state();
  state.values["last_epoch"] = std::int64_t{2'000'000'000};
  CHECK_THROWS_AS(training.schedule->load_state(state), CheckpointError);
  Scheduled longer(stage<OneCycleLR>({.max_lr = {0.5}, .total_steps = 100}));
  longer.step(50);
  CHECK_THROWS_AS(cycle.schedule->load_state(longer.schedule->state()), ConfigError);
}
