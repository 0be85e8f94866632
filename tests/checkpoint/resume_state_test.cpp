// Training that goes on from a checkpoint as if it had never stopped.
#include <algorithm>

#include <torch/optim/lbfgs.h>

#include "checkpoint/state_training.h"
#include "data/loader_base.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::test::states;

namespace {

double largest_difference(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, (a[i] - b[i]).abs().max().item<double>());
  return largest;
}

void check_resumes(int ranks, Run run, const LaunchConfig& config, int stop_after) {
  CAPTURE(ranks, stop_after, run.background, run.optimizer == Kind::sgd);
  const TempDir dir;
  const Ended whole = train_on(ranks, run, config);
  Run first = run, second = run;
  first.stop_after = stop_after;
  first.save_to = second.load_from = dir / "state";
  const Ended begun = train_on(ranks, first, config), rest = train_on(ranks, second, config);
  CHECK(same_bits(rest.weights, whole.weights));
  std::vector<double> losses = begun.losses;
  losses.insert(losses.end(), rest.losses.begin(), rest.losses.end());
  CHECK(losses == whole.losses);
  CHECK(rest.updates == whole.updates);
  CHECK(rest.lr == whole.lr);
}

}  // namespace

TEST_CASE("a training that is saved and resumed ends with the same bits: ranks, optimizers, places in the epoch") {
  for (const int ranks : {1, 2, 3})
    for (const Kind kind : {Kind::sgd, Kind::adamw})
      for (const int stop_after : {1, 4, 6, 9}) check_resumes(ranks, {.optimizer = kind}, {}, stop_after);
}

TEST_CASE("the same in dispatch mode, with a running generator and without shared weights") {
  LaunchConfig dispatch, running, alone;
  dispatch.data_loader.dispatch_batches = true;
  running.data_loader.use_seedable_sampler = false;
  alone.sharding = Sharding::none;
  for (const auto& config : {dispatch, running, alone})
    for (const int stop_after : {3, 5}) check_resumes(2, {}, config, stop_after);
}

TEST_CASE("the same with uneven ranks, accumulation and saves in the background") {
  LaunchConfig uneven, accumulating;
  uneven.data_loader.even_batches = false;  // of 7 steps the second rank has 6
  accumulating.gradient_accumulation_steps = 2;
  for (const int stop_after : {5, 6, 7, 8}) check_resumes(2, {.background = true}, uneven, stop_after);
  check_resumes(2, {.background = true}, accumulating, 4);
  check_resumes(2, {.optimizer = Kind::sgd}, accumulating, 7);  // the shorter window at the end of the epoch
}

TEST_CASE("the same in fp16, with the state of the scaler") {
  LaunchConfig config;
  config.mixed_precision = Precision::fp16;
  config.grad_scaler.growth_interval = 3;
  check_resumes(2, {}, config, 4);
}

TEST_CASE("1, 2, 4 and 1 ranks go on from each other, with the global batch and the order of samples") {
  const Run plain{.dropout = false, .epochs = 4, .samples = 32};
  const auto part = [&](std::int64_t ranks) {
    Run run = plain;
    run.batch_size = 4 / ranks;
    return run;
  };
  const TempDir dir;
  const Ended whole = train_on(1, part(1));
  std::string from;
  Ended last;
  for (const std::int64_t ranks : {1, 2, 4, 1}) {
    Run run = part(ranks);
    run.load_from = from;
    if (ranks > 1 || from.empty()) {
      run.stop_after = 5;
      run.save_to = dir / ("after-" + std::to_string(ranks));
    }
    last = train_on(static_cast<int>(ranks), run);
    from = run.save_to;
  }
  CHECK(largest_difference(last.weights, whole.weights) < 1e-5);
  CHECK(last.updates == whole.updates);
}

TEST_CASE("a loader that skips steps is where its loader stands") {
  run_ranks(2, [](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Points(40), {.batch_size = 2, .shuffle = true}));
    auto rest = loader.skip_first_batches(3);
    int taken = 0;
    for (auto& batch : rest) {
      (void)batch;
      if (loader.state_dict().step != 3 + ++taken) throw std::logic_error("it stands elsewhere");
      if (taken == 2) break;
    }
    if (loader.state_dict().step != 0) throw std::logic_error("the next epoch does not begin with step 0");
  });
}

TEST_CASE("the last of two loads before an epoch is the one that counts") {
  LaunchConfig config;
  config.data_loader.use_seedable_sampler = false;
  const auto first = on_ranks<std::vector<at::Tensor>>(2, config, [](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Points(40), {.batch_size = 2, .shuffle = true}));
    std::vector<data::LoaderState> states;
    std::vector<at::Tensor> expected, got;
    for (int epoch = 0; epoch < 2; ++epoch)
      for (auto& [points, classes] : loader)
        if (loader_of(loader).status().step == 1)
          states.push_back(loader.state_dict());
        else if (loader_of(loader).status().step == 2)
          expected.push_back(points);
    for (const int which : {0, 1, 0}) {
      loader.load_state_dict(states[1 - static_cast<std::size_t>(which)]);
      loader.load_state_dict(states[static_cast<std::size_t>(which)]);
      for (auto& [points, classes] : loader) {
        got.push_back(points);
        break;
      }
      if (!at::equal(got.back(), expected[static_cast<std::size_t>(which)])) throw std::logic_error("other samples");
    }
    return got;
  });
  CHECK_FALSE(at::equal(first[0][0], first[0][1]));
}

TEST_CASE("the state of optimizers of other classes is each rank's own after a load") {
  const TempDir dir;
  const auto weights = [&](bool resume) {
    return on_ranks<at::Tensor>(2, [&](Accelerator& accelerator) {
      torch::nn::Linear net(2, 1);
      torch::optim::LBFGS inner(net->parameters(), torch::optim::LBFGSOptions(0.1).max_iter(2));
      auto model = accelerator.prepare(net);
      auto optimizer = accelerator.prepare(inner);
      const auto train = [&] {
        inner.step([&] {
          inner.zero_grad();
          auto loss = (model(at::ones({1, 2})) - 1).square().sum();
          accelerator.backward(loss);
          return loss;
        });
      };
      if (resume)
        accelerator.load_state(dir / "state");
      else
        train();
      if (!resume) accelerator.save_state(dir / "state");
      train();
      return net->weight.detach().clone();
    });
  };
  const auto whole = weights(false), resumed = weights(true);
  CHECK(at::equal(whole[0], resumed[0]));
  CHECK(at::equal(whole[1], resumed[1]));
}

TEST_CASE("another global batch is an error that names both") {
  const TempDir dir;
  train_on(2, {.stop_after = 2, .save_to = dir / "state"});
  const auto error = run_ranks_expecting_error(
      2, [&](Accelerator& accelerator) { train(accelerator, {.batch_size = 5, .load_from = dir / "state"}); });
  CHECK_THAT(error.what(), ContainsSubstring("global batch"));
}

TEST_CASE("after a load ranks that had shared state train on alone: every rank has its own") {
  // Writing to a weight ends the division; state that was only referred to must have become the rank's own by then.
  const TempDir dir;
  const auto weights_after = [&](Sharding sharding) {
    LaunchConfig config;
    config.sharding = sharding;
    run_ranks(2, config, [&](Accelerator& accelerator) {
      Small small(accelerator);
      small.train(accelerator, 3);
      accelerator.save_state(dir / "state");
    });
    return on_ranks<at::Tensor>(2, config, [&](Accelerator& accelerator) {
      Small small(accelerator);
      accelerator.load_state(dir / "state");
      accelerator.local_sgd(2, [&](nn::LocalSgd& local) {
        for (int i = 0; i < 4; ++i) {
          auto window = accelerator.accumulate(small.model);
          accelerator.backward(small.model(at::full({1, 3}, 1.0 + accelerator.rank())).square().sum());
          small.optimizer.step();
          small.optimizer.zero_grad();
          local.step();
        }
      });
      return small.net->weight.detach().clone();
    });
  };
  const auto divided = weights_after(Sharding::automatic), whole = weights_after(Sharding::none);
  CHECK(at::equal(divided[0], whole[0]));
  CHECK(at::equal(divided[1], whole[1]));
}
