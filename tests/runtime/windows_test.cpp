// The accumulation window, the reduction and the step: three states, and gradients that are kept over windows.
#include <cmath>
#include <random>

#include <torch/nn/modules/embedding.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "runtime/rank_context.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// y = w * x with w = 1: the gradient of y.sum() is the sum of x.
struct SummedScaleImpl : torch::nn::Module {
  SummedScaleImpl() : weight(register_parameter("weight", torch::ones({1}))) {}
  at::Tensor forward(double x) { return (weight * x).sum(); }
  at::Tensor weight;
};
TORCH_MODULE(SummedScale);

std::vector<double> numbers(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().to_dense().to(at::kDouble).flatten();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

std::vector<double> weights_of(Accelerator&, const SummedScale& scale) { return numbers(scale->weight); }

}  // namespace

TEST_CASE("a step within no_sync is on each rank's own gradients, and later ones go on from there") {
  const auto sharding = GENERATE(Sharding::automatic, Sharding::optimizer, Sharding::none);
  const int before = GENERATE(0, 1, 4);  // reduced steps, after some of which ranks share their weights
  const bool in_window = GENERATE(true, false), no_sync_inside = GENERATE(true, false), fused = GENERATE(true, false);
  CAPTURE(sharding, before, in_window, no_sync_inside, fused);
  LaunchConfig config{.fused_optimizers = fused};
  config.sharding = sharding;
  const auto weights = on_ranks<std::vector<double>>(2, config, [&](Accelerator& accelerator) {
    SummedScale scale;
    torch::optim::SGD sgd(scale->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(scale, sgd);
    const auto step = [&] {
      optimizer.zero_grad();
      accelerator.backward(model(accelerator.rank() + 1.0));
      optimizer.step();
    };
    const auto step_in_window = [&] {
      if (!in_window) return step();
      auto window = accelerator.accumulate(model);
      step();
    };
    for (int i = 0; i < before; ++i) step_in_window();
    if (in_window && no_sync_inside) {
      auto window = accelerator.accumulate(model);
      auto local = accelerator.no_sync(model);
      step();
    } else {
      auto local = accelerator.no_sync(model);
      step_in_window();
    }
    std::vector<double> seen = weights_of(accelerator, scale);
    step_in_window();
    seen.push_back(scale->weight.item<double>());
    return seen;
  });
  for (int rank = 0; rank < 2; ++rank) {
    const double alone = 1 - 0.15 * before - 0.1 * (rank + 1);
    const auto& seen = weights[static_cast<std::size_t>(rank)];
    CHECK(seen[0] == Approx(alone));
    CHECK(seen[1] == Approx(alone - 0.15));
  }
}

TEST_CASE("states of optimizers part with the weights within no_sync") {
  // The momentum of each rank's own step acts on in the steps that follow.
  const int before = GENERATE(0, 3);
  const auto weights = on_ranks<double>(2, [&](Accelerator& accelerator) {
    SummedScale scale;
    torch::optim::SGD sgd(scale->parameters(), torch::optim::SGDOptions(0.1).momentum(0.5));
    auto [model, optimizer] = accelerator.prepare(scale, sgd);
    for (int i = 0; i < before + 2; ++i) {
      std::optional<ReductionScope> local;
      if (i == before) local.emplace(current_rank()->window, false);
      accelerator.backward(model(accelerator.rank() + 1.0));
      optimizer.step();
      optimizer.zero_grad();
    }
    return scale->weight.item<double>();
  });
  for (int rank = 0; rank < 2; ++rank) {
    double weight = 1, momentum = 0;
    for (int i = 0; i < before + 2; ++i) {
      momentum = 0.5 * momentum + (i == before ? rank + 1.0 : 1.5);
      weight -= 0.1 * momentum;
    }
    CHECK(weights[static_cast<std::size_t>(rank)] == Approx(weight));
  }
}

TEST_CASE("no_sync suspends the reduction of micro-batches that are opened in it, and nothing else") {
  struct Seen {
    std::vector<double> closes, gradients, weights, norms, rates;
    bool operator==(const Seen&) const = default;
  };
  const auto seen = on_ranks<Seen>(2, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
    SummedScale scale;
    torch::optim::SGD sgd(scale->parameters(), 0.1);
    optim::StepLR halving(sgd, {.step_size = 1, .gamma = 0.5});
    auto [model, optimizer, scheduler] = accelerator.prepare(scale, sgd, halving);
    Seen seen;
    auto local = accelerator.no_sync(model);
    for (int m = 0; m < 4; ++m) {
      auto window = accelerator.accumulate(model);
      seen.closes.push_back(accelerator.sync_gradients());
      accelerator.backward(model(4.0 * (accelerator.rank() + 1)));
      const auto norm = accelerator.clip_grad_norm_(model, 1e9);
      seen.norms.push_back(norm.defined() ? norm.item<double>() : -1);
      seen.gradients.push_back(scale->weight.grad().item<double>());
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
      seen.gradients.push_back(scale->weight.grad().defined());
      seen.weights.push_back(scale->weight.item<double>());
      seen.rates.push_back(sgd.param_groups()[0].options().get_lr());
    }
    return seen;
  });
  for (int rank = 0; rank < 2; ++rank) {
    const double g = 4.0 * (rank + 1);
    const Seen& mine = seen[static_cast<std::size_t>(rank)];
    CHECK(mine.closes == std::vector<double>{0, 1, 0, 1});
    CHECK(mine.gradients == std::vector<double>{g / 2, 1, g, 0, g / 2, 1, g, 0});
    CHECK(mine.norms == std::vector<double>{-1, g, -1, g});
    CHECK(mine.rates == std::vector<double>{0.1, 0.05, 0.05, 0.025});
    CHECK(mine.weights[1] == Approx(1 - 0.1 * g));
    CHECK(mine.weights[3] == Approx(1 - 0.15 * g));
  }
}

TEST_CASE("of no_sync and trigger_sync_in_backward the innermost counts") {
  const auto gradients = on_ranks<std::vector<double>>(2, [](Accelerator& accelerator) {
    SummedScale scale;
    auto model = accelerator.prepare(scale);
    std::vector<double> seen;
    const auto pass = [&] {
      scale->weight.mutable_grad().reset();
      accelerator.backward(model(2.0 * accelerator.rank()));
      seen.push_back(scale->weight.grad().item<double>());
    };
    {
      auto local = accelerator.no_sync(model);
      auto reduced = accelerator.trigger_sync_in_backward(model);
      pass();
    }
    {
      auto reduced = accelerator.trigger_sync_in_backward(model);
      auto local = accelerator.no_sync(model);
      pass();
      {
        auto again = accelerator.trigger_sync_in_backward(model);
        pass();
      }
      pass();
    }
    pass();
    return seen;
  });
  CHECK(gradients[0] == std::vector<double>{1, 0, 1, 0, 1});
  CHECK(gradients[1] == std::vector<double>{1, 2, 1, 2, 1});
}

TEST_CASE("sums over items within no_sync are the mean over the rank's own where the window closes") {
  const auto gradients =
      on_ranks<std::vector<double>>(2, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
        SummedScale scale;
        auto model = accelerator.prepare(scale);
        std::vector<double> seen;
        const double items = accelerator.rank() + 1;
        auto local = accelerator.no_sync(model);
        for (int m = 0; m < 2; ++m) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(model(6.0), items);
          seen.push_back(scale->weight.grad().item<double>());
        }
        return seen;
      });
  CHECK(gradients[0] == std::vector<double>{6, 6});
  CHECK(gradients[1] == std::vector<double>{6, 3});
}

TEST_CASE("sums over items outside of windows are no gradients to step on") {
  const auto error = run_ranks_expecting_error(1, [](Accelerator& accelerator) {
    SummedScale scale;
    torch::optim::SGD sgd(scale->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(scale, sgd);
    auto local = accelerator.no_sync(model);
    accelerator.backward(model(6.0), 3);
    optimizer.step();
  });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
  CHECK_THAT(error.what(), ContainsSubstring("sums over items"));
}

TEST_CASE("no_sync on one rank alone is an error, not a hang") {
  const auto sharding = GENERATE(Sharding::automatic, Sharding::none);
  LaunchConfig config;
  config.sharding = sharding;
  config.timeout = std::chrono::seconds(30);
  const auto error = run_ranks_expecting_error(2, config, [](Accelerator& accelerator) {
    SummedScale scale;
    torch::optim::SGD sgd(scale->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(scale, sgd);
    std::optional<ReductionScope> local;
    if (accelerator.is_main()) local.emplace(current_rank()->window, false);
    accelerator.backward(model(1.0));
    optimizer.step();
  });
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
}

TEST_CASE("passes of one rank alone before a step: each rank steps on its own gradients") {
  // Rank 1 has one more pass, that is not reduced. Also LibTorch's own backward.
  const bool bare = GENERATE(true, false);
  const auto weights = on_ranks<double>(3, [&](Accelerator& accelerator) {
    SummedScale scale;
    torch::optim::SGD sgd(scale->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(scale, sgd);
    for (int step = 0; step < 4; ++step) {
      optimizer.zero_grad();
      accelerator.backward(model(1.0));
      if (step == 3 && accelerator.rank() == 1) {
        auto local = accelerator.no_sync(model);
        if (bare)
          model(2.0).backward();
        else
          accelerator.backward(model(2.0));
      }
      optimizer.step();
    }
    return scale->weight.item<double>();
  });
  CHECK(weights[0] == Approx(0.6));
  CHECK(weights[1] == Approx(0.4));
  CHECK(weights[2] == Approx(0.6));
}

namespace {

// One weight with dense and one with sparse gradients; both get the same.
struct TwoKindsImpl : torch::nn::Module {
  TwoKindsImpl() {
    dense = register_parameter("dense", torch::ones({3}));
    rows = register_module("rows", torch::nn::Embedding(torch::nn::EmbeddingOptions(3, 1).sparse(true)));
  }
  at::Tensor forward(double x) {
    return dense[1] * x + (rows(at::ones({1}, at::kLong)) * x).sum();  // row 1
  }
  at::Tensor dense;
  torch::nn::Embedding rows{nullptr};
};
TORCH_MODULE(TwoKinds);

// What happens in one window.
struct Window {
  int length;  // micro-batches, the last of which closes it
  bool items, no_sync, keeps;
  int triggers;  // bits: micro-batches whose pass is reduced
};

double gradient_of(int rank, int window, int micro_batch) { return 1 + 3 * rank + window + 0.5 * micro_batch; }
double items_of(int rank, int micro_batch) { return 1 + rank + 2 * micro_batch; }

std::vector<Window> random_windows(unsigned seed, int ranks) {
  std::mt19937 random(seed);
  std::vector<Window> windows;
  for (int w = 0; w < 6; ++w) {
    Window window{static_cast<int>(random() % 4) + 1, random() % 2 == 0, random() % 4 == 0 && ranks > 1,
                  random() % 4 != 0, random() % 2 == 0 ? static_cast<int>(random() % 8) : 0};
    windows.push_back(window);
  }
  return windows;
}

// Each rank's gradient when the windows have closed.
std::vector<std::vector<double>> expected_gradients(const std::vector<Window>& windows, int ranks) {
  std::vector<double> held(static_cast<std::size_t>(ranks), 0.0);
  std::vector<std::vector<double>> seen(static_cast<std::size_t>(ranks));
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const Window& window = windows[w];
    double sum_of_all = 0, items_of_all = 0;
    std::vector<double> sums, items;
    for (int rank = 0; rank < ranks; ++rank) {
      sums.push_back(0), items.push_back(0);
      for (int m = 0; m < window.length; ++m) {
        sums.back() += gradient_of(rank, static_cast<int>(w), m);
        items.back() += items_of(rank, m);
      }
      sum_of_all += sums.back(), items_of_all += items.back();
    }
    double mean_held = 0;
    for (const double one : held) mean_held += one / ranks;
    const bool reduced_in_between = (window.triggers & ((1 << (window.length - 1)) - 1)) != 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      if (window.no_sync && !reduced_in_between)
        held[r] += sums[r] / (window.items ? items[r] : window.length);
      else
        held[r] = mean_held + (window.items ? sum_of_all / items_of_all : sum_of_all / ranks / window.length);
      seen[r].push_back(held[r]);
    }
    if (!window.keeps) std::fill(held.begin(), held.end(), 0.0);
  }
  return seen;
}

std::string describe(const std::vector<Window>& windows) {
  std::string text;
  for (const Window& window : windows)
    text += '(' + std::to_string(window.length) + (window.items ? " items" : "") + (window.no_sync ? " no_sync" : "") +
            (window.keeps ? " keeps" : "") + ' ' + std::to_string(window.triggers) + ") ";
  return text;
}

std::vector<double> train_windows(Accelerator& accelerator, const std::vector<Window>& windows, bool set_to_none) {
  TwoKinds net;
  torch::optim::SGD sgd(net->parameters(), 0.0);
  auto [model, optimizer] = accelerator.prepare(net, sgd);
  std::vector<double> seen;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const Window& window = windows[w];
    for (int m = 0; m < window.length; ++m) {
      const bool closes = m + 1 == window.length;
      std::optional<ReductionScope> scope;
      if (window.no_sync && closes) scope.emplace(current_rank()->window, false);
      if (!closes && (window.triggers >> m & 1)) scope.emplace(current_rank()->window, true);
      auto micro_batch = closes ? accelerator.accumulate_and_close(model) : accelerator.accumulate(model);
      if (accelerator.sync_gradients() != closes) throw std::logic_error("another window");
      const auto loss = model(gradient_of(accelerator.rank(), static_cast<int>(w), m));
      if (window.items)
        accelerator.backward(loss, items_of(accelerator.rank(), m));
      else
        accelerator.backward(loss);
      if (!closes) continue;
      const double dense = net->dense.grad()[1].item<double>();
      const double sparse = net->rows->weight.grad().to_dense()[1][0].item<double>();
      if (std::abs(dense - sparse) > 1e-4)
        throw std::logic_error(describe(windows) + "window " + std::to_string(w) + ": the dense gradient is " +
                               std::to_string(dense) + " and the sparse one " + std::to_string(sparse));
      seen.push_back(dense);
      optimizer.step();
      if (!window.keeps) optimizer.zero_grad(set_to_none);
    }
  }
  return seen;
}

}  // namespace

TEST_CASE("a window's factor is for what the window added, whatever gradients are kept") {
  const int ranks = GENERATE(1, 2, 3);
  const bool share = GENERATE(true, false);
  for (unsigned seed = 0; seed < 25; ++seed) {
    auto windows = random_windows(seed, ranks);
    // With local sums a reduction within the window makes other means; that is not what this test is about.
    for (Window& window : windows)
      if (window.no_sync) window.triggers = 0;
    const auto expected = expected_gradients(windows, ranks);
    const auto seen = on_ranks<std::vector<double>>(
        ranks, {.gradient_accumulation_steps = 5, .gradient_reducer = {.share_gradients = share}},
        [&](Accelerator& accelerator) { return train_windows(accelerator, windows, seed % 2 == 0); });
    for (std::size_t rank = 0; rank < seen.size(); ++rank)
      for (std::size_t w = 0; w < windows.size(); ++w) {
        CAPTURE(seed, rank, w, windows[w].length, windows[w].items, windows[w].no_sync, windows[w].triggers);
        CHECK(seen[rank][w] == Approx(expected[rank][w]).epsilon(1e-4));
      }
  }
}

TEST_CASE("six batches of gradient 1 in windows of four add up to 2, where nothing drops gradients") {
  const int ranks = GENERATE(1, 2);
  const bool steps_every_second = GENERATE(false, true);
  const auto gradients = on_ranks<double>(ranks, {.gradient_accumulation_steps = 4}, [&](Accelerator& accelerator) {
    SummedScale scale;
    torch::optim::SGD sgd(scale->parameters(), 1.0);
    auto [model, optimizer, loader] = accelerator.prepare(
        scale, sgd, data::DataLoader(data::TensorDataset(at::ones({6 * accelerator.world_size()})), {.batch_size = 1}));
    int windows = 0;
    for (auto& batch : loader) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(batch.template item<double>()));
      if (steps_every_second && accelerator.sync_gradients() && ++windows % 2 == 0) optimizer.step();
    }
    return steps_every_second ? 1 - scale->weight.item<double>() : scale->weight.grad().item<double>();
  });
  for (const double gradient : gradients) CHECK(gradient == Approx(2.0));
}

TEST_CASE("kept gradients that the program writes to between the passes of a window are scaled right, or refused") {
  const auto kept_and = [](const std::function<void(const at::Tensor&, torch::optim::Optimizer&)>& write) {
    double gradient = 0;
    run_ranks(1, {.gradient_accumulation_steps = 4}, [&](Accelerator& accelerator) {
      SummedScale scale;
      torch::optim::SGD sgd(scale->parameters(), 1.0);
      auto model = accelerator.prepare(scale);
      {
        auto window = accelerator.accumulate_and_close(model);
        accelerator.backward(model(5.0));
      }
      {
        auto window = accelerator.accumulate(model);
        accelerator.backward(model(4.0));
      }
      write(scale->weight.grad(), sgd);
      auto window = accelerator.accumulate_and_close(model);
      accelerator.backward(model(4.0));
      gradient = scale->weight.grad().item<double>();
    });
    return gradient;
  };
  CHECK(kept_and([](const at::Tensor&, auto&) {}) == Approx(9.0));
  // Dropped or set to 0: what is left is the second half of the window.
  CHECK(kept_and([](const at::Tensor&, auto& sgd) { sgd.zero_grad(true); }) == Approx(2.0));
  CHECK(kept_and([](const at::Tensor&, auto& sgd) { sgd.zero_grad(false); }) == Approx(2.0));
  CHECK(kept_and([](const at::Tensor& gradient, auto&) { gradient.zero_(); }) == Approx(2.0));
  try {
    kept_and([](const at::Tensor& gradient, auto&) { gradient.mul_(0.5); });
    FAIL("should have been refused");
  } catch (const RankError& error) {
    CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
    CHECK_THAT(error.what(), ContainsSubstring("weight") && ContainsSubstring("kept from an earlier window"));
  }
}

TEST_CASE("a micro-batch within a micro-batch is an error, after which windows go on") {
  const auto texts =
      on_ranks<std::string>(2, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) -> std::string {
        SummedScale first, second;
        auto [a, b] = accelerator.prepare(first, second);
        std::string text;
        for (int i = 0; i < 2; ++i) {
          auto window = accelerator.accumulate(a);
          try {
            auto inner = accelerator.accumulate(b);
          } catch (const ConfigError& error) {
            text = error.what();
          }
          text += accelerator.sync_gradients() ? " closes" : " open";
        }
        return text;
      });
  for (const auto& text : texts)
    CHECK_THAT(text, ContainsSubstring("accumulate() within accumulate()") && ContainsSubstring("closes"));
}

TEST_CASE("a step on gradients of a bare loss.backward() is told of once, one within no_sync is not") {
  const bool bare = GENERATE(true, false);
  for (const Sharding sharding : {Sharding::automatic, Sharding::none}) {
    std::vector<std::string> warnings;
    const auto warn = [&](const std::string& text) { warnings.push_back(text); };
    run_ranks(2, {.sharding = sharding, .on_warning = warn}, [&](Accelerator& accelerator) {
      SummedScale scale;
      torch::optim::SGD sgd(scale->parameters(), 0.1);
      auto [model, optimizer] = accelerator.prepare(scale, sgd);
      const auto step = [&, &prepared = model, &stepping = optimizer](bool reduces) {
        const auto loss = prepared(1.0 + accelerator.rank());
        if (reduces)
          accelerator.backward(loss);
        else
          loss.backward();
        stepping.step();
        stepping.zero_grad();
      };
      step(true);
      for (int i = 0; i < 3; ++i)
        if (bare) {
          step(false);
        } else {
          const auto apart = accelerator.no_sync(model);
          step(true);
        }
    });
    CHECK(warnings.size() == (bare ? 1 : 0));
    if (bare && !warnings.empty()) CHECK_THAT(warnings[0], ContainsSubstring("write accelerator.backward(loss)"));
  }
}
