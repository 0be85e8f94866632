// The parts of a rank's training, each by itself: on a rank of a group that nobody else belongs to.
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "comm/shared_memory_communicator.h"
#include "core/cancel_token.h"
#include "runtime/clipping.h"
#include "runtime/divided_updates.h"
#include "runtime/training_warnings.h"
#include "runtime/uneven_inputs.h"
#include "support/catch.h"
#include "support/error_of.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// Rank 0 of `ranks`, alone: calls that wait for others would wait for ever.
struct LoneRank {
  explicit LoneRank(int ranks, LaunchConfig config = {}) {
    config.cpu = ranks;
    config.on_warning = [this](const std::string& text) { warnings.push_back(text); };
    state = examine(config);
    context.communicator = comm::make_shared_memory_communicator(group, 0);
  }

  std::vector<std::string> warnings;
  AcceleratorState state;
  CancelToken token;
  comm::RankGroup group{1, token};
  RankContext context{.rank = 0,
                      .state = &state,
                      .group = &group,
                      .communicator = nullptr,
                      .generators = rng::make_generators(1, 0),
                      .window = {1, true}};
  TrainingParts parts;
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
