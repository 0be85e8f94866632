// The parts of a rank's training, each by itself: on a rank of a group that nobody else belongs to.
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "comm/shared_memory_communicator.h"
#include "core/cancel_token.h"
#include "core/thread_team.h"
#include "nn/recording.h"
#include "runtime/backward_passes.h"
#include "runtime/clipping.h"
#include "runtime/divided_updates.h"
#include "runtime/local_training.h"
#include "runtime/step_observer.h"
#include "runtime/step_recorder.h"
#include "runtime/training_warnings.h"
#include "runtime/uneven_inputs.h"
#include "support/catch.h"
#include "support/error_of.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// A rank as a launch makes it for its body, without the launch.
struct BareRank {
  BareRank(comm::RankGroup& group, int number, LaunchConfig config) {
    config.on_warning = [this](const std::string& text) { warnings.push_back(text); };
    state = examine(config);
    context.rank = number;
    context.group = &group;
    context.communicator = comm::make_shared_memory_communicator(group, number);
  }

  std::vector<std::string> warnings;
  AcceleratorState state;
  RankContext context{.rank = 0,
                      .state = &state,
                      .group = nullptr,
                      .communicator = nullptr,
                      .generators = rng::make_generators(1, 0),
                      .window = {1, true}};
  TrainingParts parts;
};

struct OwnGroup {
  CancelToken token;
  comm::RankGroup group{1, token};
};

// Rank 0 of `ranks`, in a group of its own: calls do not wait for others.
struct LoneRank : OwnGroup, BareRank {
  explicit LoneRank(int ranks) : BareRank(group, 0, {.cpu = ranks}) {}
};

// Two ranks, each on a thread of its own; throws what one of them has thrown.
void on_two_ranks(const std::function<void(BareRank&)>& body) {
  CancelToken token;
  comm::RankGroup group(2, token);
  ThreadTeam team({.size = 2}, token, [&](int number) {
    BareRank rank(group, number, {.cpu = 2});
    body(rank);
  });
  team.join();
  if (token.cancelled()) std::rethrow_exception(token.reason());
}

// What backward passes are made of.
struct Passes {
  explicit Passes(BareRank& rank)
      : updates(rank.context, rank.parts),
        join(rank.context, rank.parts, updates),
        warnings(rank.context, rank.parts),
        recorder(rank.context, rank.parts, join),
        passes(rank.context, rank.parts, join, recorder, warnings) {}

  DividedUpdates updates;
  Join join;
  TrainingWarnings warnings;
  StepRecorder recorder;
  BackwardPasses passes;
};

// One weight of 1, prepared.
struct Weight : torch::nn::Module {
  at::Tensor value = register_parameter("value", at::ones({1}));
};

std::shared_ptr<Weight> prepared_weight(BareRank& rank) {
  auto weight = std::make_shared<Weight>();
  rank.parts.reducers.add(weight, *rank.context.communicator, *rank.context.group);
  return weight;
}

double gradient_of(const Weight& weight) { return weight.value.grad().item<double>(); }

// Notes what training tells of its steps.
struct Observer : StepObserver {
  bool before_batch(const data::EpochPosition&) override { return true; }
  void before_micro_batch() override {}
  void after_backward(const at::Tensor& loss) override { losses.push_back(loss.item<double>()); }
  void after_window() noexcept override { windows += 1; }
  bool stop_requested() const override { return false; }
  void set_total_steps(std::int64_t) override {}
  void continue_at(std::int64_t) override {}
  void step_aside() override {}
  void come_back() override {}

  std::vector<double> losses;
  int windows = 0;
};

// A recording whose work between graphs is kept.
struct KeptRecording : nn::Recording {
  bool records() const override { return true; }
  void at_each_replay(HostWork) override {}
  void between(std::function<void()> work, std::uint64_t signature) override {
    works.push_back(std::move(work));
    signatures.push_back(signature);
  }

  std::vector<std::function<void()>> works;
  std::vector<std::uint64_t> signatures;
};

}  // namespace

TEST_CASE("a join counts reductions while it is active, and is over however its body ends") {
  LoneRank rank(1);
  DividedUpdates updates(rank.context, rank.parts);
  Join join(rank.context, rank.parts, updates);
  CHECK(join.meet(Join::Turn::reduces_mean) == 0);  // outside: nobody is told
  CHECK_FALSE(join.place());
  join.run([&] {
    CHECK(updates.apart());
    CHECK(join.meet(Join::Turn::reduces_mean) == 0);
    CHECK(join.place() == 1);
    CHECK_FALSE(error_of<ConfigError>([&] { join.run([] {}); }).empty());
  });
  CHECK_FALSE(join.active());
  CHECK_FALSE(updates.apart());
  CHECK_THROWS_AS(join.run([] { throw std::runtime_error("on fire"); }), std::runtime_error);
  CHECK_FALSE(join.active());
  CHECK_FALSE(updates.apart());
}

TEST_CASE("clipping acts when optimizers do, on the gradients that there are") {
  LoneRank rank(1);
  const DividedUpdates updates(rank.context, rank.parts);
  Clipping clipping(rank.context, rank.parts, updates);
  at::Tensor parameter = at::zeros({2}).requires_grad_();
  parameter.mutable_grad() = at::tensor({3.0F, 4.0F});
  const at::Tensor norm = clipping.clip_norm({parameter}, 1, 2);
  CHECK(norm.item<double>() == 5);
  CHECK(parameter.grad().norm().item<double>() == Approx(1));
  clipping.clip_values({parameter}, 0.25);
  CHECK(parameter.grad().max().item<double>() == 0.25);
  rank.context.window = {2, true};
  rank.context.window.begin_micro_batch(false);
  CHECK_FALSE(clipping.clip_norm({parameter}, 1e-9, 2).defined());
  CHECK(parameter.grad().max().item<double>() == 0.25);
}

TEST_CASE("what is said of a training is said once") {
  LoneRank rank(2);
  TrainingWarnings warnings(rank.context, rank.parts);
  torch::nn::Linear net(2, 1);
  torch::optim::SGD sgd(net->parameters(), 0.1);
  for (int update = 0; update < 3; ++update) warnings.look_for_foreign_parameters(sgd);
  REQUIRE(rank.warnings.size() == 1);
  CHECK_THAT(rank.warnings[0], ContainsSubstring("is of no prepared model"));
  warnings.forget(sgd);  // prepared again
  warnings.look_for_foreign_parameters(sgd);
  CHECK(rank.warnings.size() == 2);
  warnings.look_for_local_gradients(sgd);  // of no model: nothing to say
  warnings.look_for_raw_forward();         // in full precision: neither
  CHECK(rank.warnings.size() == 2);
}

TEST_CASE("one rank divides nothing") {
  LoneRank rank(1);
  const DividedUpdates updates(rank.context, rank.parts);
  torch::nn::Linear net(2, 1);
  torch::optim::SGD sgd(net->parameters(), 0.1);
  CHECK(updates.divide(sgd) == nullptr);
}

TEST_CASE("a backward pass is its share of the window, and the observer sees the whole loss") {
  LoneRank rank(1);
  Observer observer;
  rank.context.observer = &observer;
  Passes made(rank);
  const auto weight = prepared_weight(rank);
  nn::AccumulationWindow& window = rank.context.window;
  window = {2, true};
  window.begin_micro_batch(false);
  made.passes.run(4 * weight->value, {});
  CHECK(gradient_of(*weight) == 2);
  window.end_micro_batch();
  window.begin_micro_batch(false);
  made.passes.run(6 * weight->value, {});
  CHECK(gradient_of(*weight) == 2 + 3);
  window.end_micro_batch();
  CHECK(observer.windows == 0);  // accumulate() tells of its windows itself
  made.passes.run(8 * weight->value, {});
  CHECK(observer.windows == 1);  // outside of it each pass is one
  CHECK(observer.losses == std::vector<double>{4, 6, 8});
}

TEST_CASE("only the pass that closes the window is reduced, with the gradients of those before it") {
  std::vector<double> open(2), closed(2);
  on_two_ranks([&](BareRank& rank) {
    Passes made(rank);
    const auto weight = prepared_weight(rank);
    const auto number = static_cast<std::size_t>(rank.context.rank);
    nn::AccumulationWindow& window = rank.context.window;
    window = {2, true};
    for (auto* seen : {&open, &closed}) {
      window.begin_micro_batch(false);
      made.passes.run((number == 0 ? 2 : 6) * weight->value, {});
      (*seen)[number] = gradient_of(*weight);
      window.end_micro_batch();
    }
  });
  CHECK(open == std::vector<double>{1, 3});
  CHECK(closed == std::vector<double>{4, 4});
}

TEST_CASE("sums over items become the mean over the items of all ranks, and evaluations the mean of all losses") {
  std::vector<double> gradients(2), losses(2);
  on_two_ranks([&](BareRank& rank) {
    Passes made(rank);
    const auto weight = prepared_weight(rank);
    const auto number = static_cast<std::size_t>(rank.context.rank);
    made.passes.run((number == 0 ? 2 : 10) * weight->value, number == 0 ? 1 : 3, {});
    gradients[number] = gradient_of(*weight);
    const at::Tensor loss = made.passes.evaluate([&] {
      const at::Tensor mine = static_cast<double>(number) * weight->value;
      made.passes.run(mine, {});
      return mine;
    });
    losses[number] = loss.item<double>();
  });
  CHECK(gradients == std::vector<double>{3, 3});
  CHECK(losses == std::vector<double>{0.5, 0.5});
}

TEST_CASE("a recorder has no step recorded while something stands in the way, and says what") {
  LoneRank rank(1);
  Passes made(rank);
  const auto weight = prepared_weight(rank);
  torch::optim::SGD sgd(std::vector<at::Tensor>{weight->value}, 0.1);
  const auto graph = made.recorder.make_graph({});
  using Turn = tandem::detail::StepGraph::Turn;
  CHECK(graph->next({}) == Turn::call);
  CHECK(graph->reason() == "CPU ranks have no graphs");
  rank.state.devices = {c10::Device(c10::kCUDA, 0)};  // which nothing touches yet
  nn::AccumulationWindow& window = rank.context.window;
  nn::GradientReducerOptions& options = rank.state.config.gradient_reducer;
  std::optional<optim::AcceleratedOptimizer> divided;
  const auto divide = [&] {
    divided.emplace(std::make_shared<optim::AcceleratedOptimizer::Shared>(
        optim::AcceleratedOptimizer::Shared{.inner = sgd,
                                            .state = window,
                                            .token = rank.token,
                                            .sharded = std::make_unique<optim::ShardedOptimizer>(
                                                sgd, *rank.context.communicator, rank.group, rank.parts.reducers)}));
    rank.parts.optimizers.emplace_back(*divided);
  };
  const auto hook = [](nn::GradientBucket&, comm::Communicator&) -> nn::FinishReduction { return {}; };
  struct Obstacle {
    std::string reason;
    std::function<void()> comes, goes;
  };
  const std::vector<Obstacle> obstacles{
      {"under fp16", [&] { rank.parts.scaler.emplace(optim::GradScalerOptions{}); },
       [&] { rank.parts.scaler.reset(); }},
      {"several micro-batches",
       [&] {
         window = {2, true};
       },
       [&] {
         window = {1, true};
       }},
      {"within no_sync", [&] { window.set_reduction({.no_sync = true}); }, [&] { window.set_reduction({}); }},
      {"within local_sgd", [&] { window.train_alone(true); }, [&] { window.train_alone(false); }},
      {"updates are divided", divide, [&] { divided.reset(); }},
      {"check_finite", [&] { options.check_finite = true; }, [&] { options.check_finite = false; }},
      {"a communication hook", [&] { (*rank.parts.reducers.begin())->set_communication_hook(hook); },
       [&] { rank.parts.reducers.shorten(0); }}};
  for (const Obstacle& obstacle : obstacles) {
    CAPTURE(obstacle.reason);
    CHECK(graph->next({}) == Turn::rehearse);
    CHECK(graph->reason() == "");
    obstacle.comes();
    CHECK(graph->next({}) == Turn::call);
    CHECK_THAT(graph->reason(), ContainsSubstring(obstacle.reason));
    obstacle.goes();
  }
  made.join.run([&] { CHECK(graph->next({}) == Turn::call); });
  CHECK_THAT(graph->reason(), ContainsSubstring("within join_uneven_inputs"));
  CHECK(graph->next({}) == Turn::rehearse);
}

TEST_CASE("what reduces a recorded pass is done at each replay, by the gradients that there were") {
  std::vector<std::vector<double>> seen(2);
  std::vector<std::vector<std::uint64_t>> signatures(2);
  std::vector<std::string> refusals(2);
  on_two_ranks([&](BareRank& rank) {
    Passes made(rank);
    const auto weight = prepared_weight(rank), other = prepared_weight(rank);
    const auto number = static_cast<std::size_t>(rank.context.rank);
    weight->value.mutable_grad() = at::full({1}, number == 0 ? 1.0 : 5.0);
    KeptRecording recording;
    made.recorder.record_reduction(recording);
    seen[number].push_back(gradient_of(*weight));
    for (int replay = 0; replay < 2; ++replay) {
      recording.works.at(0)();
      seen[number].push_back(gradient_of(*weight));
      weight->value.grad().fill_(number == 0 ? 2.0 : 10.0);
    }
    other->value.mutable_grad() = at::ones({1});
    made.recorder.record_reduction(recording);
    signatures[number] = recording.signatures;
    other->value.mutable_grad() = at::ones({1}).to_sparse();
    refusals[number] = error_of<ConfigError>([&] { made.recorder.record_reduction(recording); });
  });
  CHECK(seen == std::vector<std::vector<double>>{{1, 3, 6}, {5, 3, 6}});
  CHECK(signatures[0] == signatures[1]);
  REQUIRE(signatures[0].size() == 2);
  CHECK(signatures[0][0] != signatures[0][1]);
  for (const std::string& refusal : refusals) CHECK(refusal == "the gradient of value is sparse");
}

TEST_CASE("local SGD averages after every so many windows that close") {
  bool closes = false;
  int averages = 0;
  nn::LocalSgd local(
      3, [&] { return closes; }, [&] { averages += 1; });
  for (int micro_batch = 0; micro_batch < 5; ++micro_batch) local.step();
  CHECK(averages == 0);
  closes = true;
  std::vector<int> seen;
  for (int window = 0; window < 7; ++window) {
    local.step();
    seen.push_back(averages);
  }
  CHECK(seen == std::vector<int>{0, 0, 1, 1, 1, 2, 2});
}

TEST_CASE("ranks that train locally are apart until the end, when they have the mean of their weights") {
  struct Ended {
    bool alone_within = false, apart_within = false, alone_after = true, apart_after = true;
    double average = 0, kept = 0;
    std::vector<std::string> refusals{};
  };
  std::vector<Ended> ended(2);
  on_two_ranks([&](BareRank& rank) {
    Passes made(rank);
    const auto weight = prepared_weight(rank);
    nn::AccumulationWindow& window = rank.context.window;
    const auto train = [&](int steps, const std::function<void(nn::LocalSgd&)>& body) {
      train_locally(rank.context, rank.parts, made.updates, made.join, steps, body);
    };
    const auto set_weight = [&](double value) {
      const at::NoGradGuard no_grad;
      weight->value.fill_(value);
    };
    Ended& mine = ended[static_cast<std::size_t>(rank.context.rank)];
    train(1, [&](nn::LocalSgd&) {
      mine.alone_within = window.trains_alone() && !window.reduces();
      mine.apart_within = made.updates.apart();
      mine.refusals.push_back(error_of<ConfigError>([&] { train(1, [](nn::LocalSgd&) {}); }));
      set_weight(rank.context.rank == 0 ? 2 : 4);
    });
    mine.average = weight->value.item<double>();
    mine.refusals.push_back(error_of<ConfigError>([&] { train(0, [](nn::LocalSgd&) {}); }));
    try {
      train(1, [&](nn::LocalSgd&) {
        set_weight(rank.context.rank);
        throw std::runtime_error("on fire");
      });
    } catch (const std::runtime_error&) {
    }
    mine.kept = weight->value.item<double>();
    mine.alone_after = window.trains_alone();
    mine.apart_after = made.updates.apart();
  });
  for (std::size_t rank = 0; rank < 2; ++rank) {
    const Ended& mine = ended[rank];
    CHECK(mine.alone_within);
    CHECK(mine.apart_within);
    CHECK(mine.average == 3);
    CHECK(mine.kept == static_cast<double>(rank));  // nobody has averaged
    CHECK_FALSE(mine.alone_after);
    CHECK_FALSE(mine.apart_after);
    REQUIRE(mine.refusals.size() == 2);
    CHECK_THAT(mine.refusals[0], ContainsSubstring("local_sgd within local_sgd"));
    CHECK_THAT(mine.refusals[1], ContainsSubstring("0 steps between averages; use 1 or more"));
  }
}
