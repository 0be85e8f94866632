// Loss scaling with one decision for all ranks, and clipping that waits for no device.
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"
#include "support/scale.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double rate(const torch::optim::Optimizer& optimizer) { return optimizer.param_groups()[0].options().get_lr(); }

double scale_now(Accelerator& accelerator) { return accelerator.grad_scaler()->state().scale; }

}  // namespace

TEST_CASE("training in bf16 and fp16 reaches a loss near float32's") {
  struct Losses {
    double first = 0, last = 0;
  };
  const auto train = [](Precision precision) {
    return on_ranks<Losses>(2, {.mixed_precision = precision}, [](Accelerator& accelerator) {
      rng::manual_seed(5);
      const auto x = torch::randn({64, 8});
      const auto target = x.pow(2).sum(1).gt(8).to(at::kLong);
      torch::nn::Sequential net(torch::nn::Linear(8, 32), torch::nn::Tanh(), torch::nn::Linear(32, 2));
      torch::optim::AdamW adamw(net->parameters(), 0.02);
      auto [model, optimizer] = accelerator.prepare(net, adamw);
      const auto mine = accelerator.split_between_ranks(x), labels = accelerator.split_between_ranks(target);
      Losses losses;
      for (int i = 0; i < 80; ++i) {
        const auto loss = torch::cross_entropy_loss(model(mine), labels);
        accelerator.backward(loss);
        accelerator.clip_grad_norm_(model, 1.0);
        optimizer.step();
        optimizer.zero_grad();
        losses.last = accelerator.reduce(loss, comm::ReduceOp::mean).item<double>();
        if (i == 0) losses.first = losses.last;
      }
      return losses;
    })[0];
  };
  const auto plain = train(Precision::no), bf16 = train(Precision::bf16), fp16 = train(Precision::fp16);
  CHECK(plain.last < plain.first / 2);
  for (const auto& mixed : {bf16, fp16}) {
    CHECK(mixed.last != plain.last);  // or it was not mixed
    CHECK(std::abs(mixed.last - plain.last) < 0.1 * (plain.first - plain.last));
  }
}

// ---- loss scaling

TEST_CASE("an infinity on one rank only makes all ranks skip the same step, and the schedule waits") {
  const int ranks = GENERATE(2, 4);
  const bool before_reduction = GENERATE(true, false);
  const bool libtorchs_scheduler = GENERATE(false, true);
  struct Seen {
    std::vector<int> skipped, accelerator_says;
    std::vector<float> weights;
    std::vector<double> rates, scales;
    std::int64_t updates = 0, scheduler_updates = 0;
  };
  const auto all = on_ranks<Seen>(
      ranks, {.mixed_precision = Precision::fp16, .grad_scaler = {.init_scale = 64, .growth_interval = 2}},
      [&](Accelerator& accelerator) {
        Scale scale(2);
        torch::optim::SGD sgd(scale->parameters(), 1.0);
        Halving halving(sgd);
        torch::optim::StepLR step_lr(sgd, 1, 0.5);
        auto [model, optimizer] = accelerator.prepare(scale, sgd);
        auto scheduler = libtorchs_scheduler ? accelerator.prepare(step_lr) : accelerator.prepare(halving);
        Seen seen;
        for (int step = 0; step < 5; ++step) {
          const bool inject = step == 2 && accelerator.is_last();
          const float x = inject && before_reduction ? kInfinity : 1.0F;
          accelerator.backward(model(torch::full({2}, x)).sum());
          if (inject && !before_reduction) model->weight.mutable_grad()[1] = kInfinity;
          optimizer.step();
          scheduler.step();
          optimizer.zero_grad();
          seen.skipped.push_back(optimizer.step_was_skipped());
          seen.accelerator_says.push_back(accelerator.optimizer_step_was_skipped());
          seen.weights.push_back(model->weight[0].item<float>());
          seen.rates.push_back(rate(sgd));
          seen.scales.push_back(scale_now(accelerator));
        }
        seen.updates = optimizer.updates();
        seen.scheduler_updates = scheduler.updates();
        return seen;
      });
  for (const auto& seen : all) {
    CHECK(seen.skipped == std::vector<int>{0, 0, 1, 0, 0});
    CHECK(seen.accelerator_says == seen.skipped);
    CHECK(seen.scales == std::vector<double>{64, 128, 64, 64, 128});
    CHECK(seen.updates == 4);
    CHECK(seen.scheduler_updates == 4);
    if (libtorchs_scheduler) {  // counts its calls from 0: the first changes nothing
      CHECK(seen.rates == std::vector<double>{1, 0.5, 0.5, 0.25, 0.125});
      CHECK(seen.weights == std::vector<float>{-1, -2, -2, -2.5, -2.75});
    } else {
      CHECK(seen.rates == std::vector<double>{0.5, 0.25, 0.25, 0.125, 0.0625});
      CHECK(seen.weights == std::vector<float>{-1, -1.5, -1.5, -1.75, -1.875});
    }
  }
}

TEST_CASE("two optimizers share a scale that changes once an iteration, and each skips for itself") {
  const bool in_window = GENERATE(true, false);
  struct Seen {
    std::vector<int> skipped;
    std::vector<double> scales, rates;
    std::vector<std::int64_t> updates;
  };
  const auto all = on_ranks<Seen>(
      2, {.mixed_precision = Precision::fp16, .grad_scaler = {.init_scale = 8, .growth_interval = 2}},
      [&](Accelerator& accelerator) {
        Scale a(2), b(2);
        torch::optim::SGD sgd_a(a->parameters(), 1.0), sgd_b(b->parameters(), 1.0);
        Halving halving_a(sgd_a), halving_b(sgd_b);
        auto [model_a, model_b, first, second, scheduler_a, scheduler_b] =
            accelerator.prepare(a, b, sgd_a, sgd_b, halving_a, halving_b);
        Seen seen;
        for (int i = 0; i < 5; ++i) {
          std::unique_ptr<MicroBatch> window;
          if (in_window) window.reset(new MicroBatch(accelerator.accumulate()));
          const auto x = torch::full({2}, i == 4 && accelerator.is_main() ? kInfinity : 1.0F);
          accelerator.backward(model_a(torch::ones({2})).sum() + model_b(x).sum());
          first.step();
          scheduler_a.step();
          first.zero_grad();
          second.step();
          scheduler_b.step();
          second.zero_grad();
          seen.scales.push_back(scale_now(accelerator));
        }
        seen.skipped = {first.step_was_skipped(), second.step_was_skipped(), accelerator.optimizer_step_was_skipped()};
        seen.rates = {rate(sgd_a), rate(sgd_b)};
        seen.updates = {first.updates(), second.updates()};
        return seen;
      });
  for (const auto& seen : all) {
    CHECK(seen.scales == std::vector<double>{8, 16, 16, 32, 16});
    CHECK(seen.skipped == std::vector<int>{0, 1, 1});
    CHECK(seen.rates == std::vector<double>{1.0 / 32, 1.0 / 16});
    CHECK(seen.updates == std::vector<std::int64_t>{5, 4});
  }
}

namespace {

struct ClippedTraining {
  std::vector<double> norms;  // of each update; -1 in micro-batches without one
  at::Tensor weight;
};

enum class Clip { no, by_norm, by_value, after_unscaling, twice };

// Five micro-batches in windows of two. Only the scaling tells the precisions apart: the model computes in float32.
std::vector<ClippedTraining> train_scaled(Precision precision, bool items, Clip clip) {
  return on_ranks<ClippedTraining>(
      2, {.mixed_precision = precision, .grad_scaler = {.growth_interval = 1}, .gradient_accumulation_steps = 2},
      [&](Accelerator& accelerator) {
        Scale scale(2);
        torch::optim::AdamW adamw(scale->parameters(), 0.1);
        auto [model, optimizer] = accelerator.prepare(scale, adamw);
        ClippedTraining trained;
        for (int m = 0; m < 5; ++m) {
          auto window = m == 4 ? accelerator.accumulate_and_close(model) : accelerator.accumulate(model);
          const auto x =
              torch::tensor({3.0F * static_cast<float>(m + 1), 4.0F + static_cast<float>(accelerator.rank())});
          if (items)
            accelerator.backward(model(x).sum(), 2 + accelerator.rank());
          else
            accelerator.backward(model(x).sum());
          at::Tensor norm;
          if (clip == Clip::after_unscaling) accelerator.unscale_gradients();
          if (clip == Clip::by_value) accelerator.clip_grad_value_(model.parameters(), 0.5);
          if (clip != Clip::no && clip != Clip::by_value) norm = accelerator.clip_grad_norm_(model, m == 2 ? 1e6 : 1.5);
          if (clip == Clip::twice) norm = accelerator.clip_grad_norm_(model, 0.25);
          trained.norms.push_back(norm.defined() ? norm.item<double>() : -1);
          optimizer.step();
          optimizer.zero_grad();
        }
        trained.weight = model->weight.detach().clone();
        return trained;
      });
}

}  // namespace

TEST_CASE("accumulation and clipping under a scale give the numbers of float32, to the bit") {
  const bool items = GENERATE(false, true);
  const auto clip = GENERATE(Clip::no, Clip::by_norm, Clip::by_value, Clip::after_unscaling, Clip::twice);
  const auto plain = train_scaled(Precision::no, items, clip), scaled = train_scaled(Precision::fp16, items, clip);
  CHECK(plain[0].weight.abs().min().item<float>() > 0);
  for (int rank = 0; rank < 2; ++rank) {
    const auto &mine = scaled[static_cast<std::size_t>(rank)], &expected = plain[static_cast<std::size_t>(rank)];
    CHECK(mine.norms == expected.norms);
    CHECK(at::equal(mine.weight, expected.weight));
    CHECK(at::equal(mine.weight, scaled[0].weight));
  }
  if (clip == Clip::by_norm) {
    CHECK(scaled[0].norms[0] == -1);
    CHECK(scaled[0].norms[1] > 1.5);
  }
}

TEST_CASE("optimizers that take turns in one window are unscaled one by one") {
  const auto gradients =
      on_ranks<std::vector<float>>(2, {.mixed_precision = Precision::fp16}, [](Accelerator& accelerator) {
        Scale a(2), b(2);
        torch::optim::SGD sgd_a(a->parameters(), 1.0), sgd_b(b->parameters(), 1.0);
        auto [model_a, model_b, first, second] = accelerator.prepare(a, b, sgd_a, sgd_b);
        const auto window = accelerator.accumulate(model_a, model_b);
        accelerator.backward(model_a(torch::full({2}, 3.0F)).sum());
        accelerator.unscale_gradients(first);
        std::vector<float> seen{model_a->weight.grad()[0].item<float>()};
        first.step();
        accelerator.backward(model_b(torch::full({2}, 5.0F)).sum());
        accelerator.unscale_gradients(second);
        seen.push_back(model_b->weight.grad()[0].item<float>());
        second.step();
        for (const auto& model : {model_a, model_b}) seen.push_back(model->weight[0].item<float>());
        return seen;
      });
  for (const auto& seen : gradients) CHECK(seen == std::vector<float>{3, 5, -3, -5});
}

TEST_CASE("gradients that are dropped after clipping, without a step, do not spoil the next ones") {
  run_ranks(1, {.mixed_precision = Precision::fp16}, [](Accelerator& accelerator) {
    Scale scale(2);
    torch::optim::SGD sgd(scale->parameters(), 1.0);
    auto [model, optimizer] = accelerator.prepare(scale, sgd);
    for (int i = 0; i < 3; ++i) {
      accelerator.backward(model(torch::tensor({3.0F, 4.0F})).sum());
      CHECK(accelerator.clip_grad_norm_(model, 100).item<double>() == 5);
      optimizer.zero_grad();
    }
    CHECK(optimizer.updates() == 0);
  });
}

TEST_CASE("clipping scaled gradients that no prepared optimizer will unscale is an error") {
  const auto error = run_ranks_expecting_error(1, {.mixed_precision = Precision::fp16}, [](Accelerator& accelerator) {
    Scale scale(2);
    auto model = accelerator.prepare(scale);
    accelerator.backward(model(torch::ones({2})).sum());
    accelerator.clip_grad_norm_(model, 1.0);
  });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
  CHECK_THAT(error.what(), ContainsSubstring("prepare the optimizer that updates these parameters"));
}

TEST_CASE("ranks with fewer steps answer the others' steps under a scaler too, and go on alike") {
  struct Ended {
    std::vector<float> weights;
    std::vector<double> scales;
    std::int64_t updates = 0;
    bool skipped = false;
  };
  const LaunchConfig config{.mixed_precision = Precision::fp16, .grad_scaler = {.init_scale = 64}};
  const auto ended = on_ranks<Ended>(3, config, [](Accelerator& accelerator) {
    Scale scale(2);
    torch::optim::SGD sgd(scale->parameters(), 1.0);
    auto [model, optimizer] = accelerator.prepare(scale, sgd);
    const auto step = [&](float x) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(torch::full({2}, x)).sum());
      optimizer.step();
      optimizer.zero_grad();
    };
    accelerator.join_uneven_inputs([&] {
      // Rank 2 makes the most, of which the fourth and the last overflow.
      for (int i = 0; i < 2 + 2 * accelerator.rank(); ++i)
        step(accelerator.rank() == 2 && (i == 3 || i == 5) ? kInfinity : 3.0F);
    });
    Ended now;
    now.skipped = accelerator.optimizer_step_was_skipped();
    now.scales.push_back(scale_now(accelerator));
    step(3.0F);
    now.scales.push_back(scale_now(accelerator));
    now.weights = {model->weight[0].item<float>()};
    now.updates = optimizer.updates();
    return now;
  });
  for (const auto& rank : ended) {
    CHECK(rank.weights == std::vector<float>{-3 - 3 - 2 - 1 - 3});  // means over three ranks
    CHECK(rank.scales == std::vector<double>{16, 16});
    CHECK(rank.updates == 5);
    CHECK(rank.skipped);
  }
}

TEST_CASE("a batch size that did not fit leaves the scale as it was") {
  const auto scales = on_ranks<std::vector<double>>(
      2, {.mixed_precision = Precision::fp16, .grad_scaler = {.init_scale = 64}}, [](Accelerator& accelerator) {
        std::vector<double> seen;
        accelerator.find_executable_batch_size(2, [&](std::int64_t size) {
          Scale scale(2);
          torch::optim::SGD sgd(scale->parameters(), 1.0);
          auto [model, optimizer] = accelerator.prepare(scale, sgd);
          seen.push_back(scale_now(accelerator));
          accelerator.backward(model(torch::full({2}, kInfinity)).sum());
          optimizer.step();
          seen.push_back(scale_now(accelerator));
          if (size > 1) throw std::bad_alloc();
        });
        return seen;
      });
  for (const auto& seen : scales) CHECK(seen == std::vector<double>{64, 32, 64, 32});
}

TEST_CASE("a scaler's options are checked before any rank starts") {
  const LaunchConfig config{.cpu = 1, .mixed_precision = Precision::fp16, .grad_scaler = {.growth_factor = 0.5}};
  CHECK_THROWS_AS(launch(config, [](Accelerator&) {}), ConfigError);
}

// ---- clipping

TEST_CASE("clipping asks no device for a value that is not on the host") {
  // Tensors without data: whoever asked for a value would get an exception.
  run_ranks(1, [](Accelerator& accelerator) {
    std::vector<at::Tensor> parameters;
    for (const std::int64_t size : {3, 5}) {
      parameters.push_back(at::empty({size}, at::device(at::kMeta)).requires_grad_());
      parameters.back().mutable_grad() = at::empty({size}, at::device(at::kMeta));
    }
    CHECK_THROWS(parameters[0].grad().sum().item<float>());
    const auto norm = accelerator.clip_grad_norm_(parameters, 1.0);
    CHECK(norm.is_meta());
    CHECK(norm.dim() == 0);
  });
}

TEST_CASE("clipping norms that are infinite or NaN does what PyTorch does, and without gradients the norm is 0") {
  run_ranks(1, [](Accelerator& accelerator) {
    const auto clipped = [&](float value) {
      const auto parameter = at::zeros({2}).requires_grad_();
      parameter.mutable_grad() = at::tensor({1.0F, value});
      const auto norm = accelerator.clip_grad_norm_(std::vector{parameter}, 0.5);
      return std::pair(norm.item<float>(), parameter.grad().clone());
    };
    const auto [infinite, of_infinite] = clipped(kInfinity);
    CHECK(infinite == kInfinity);
    CHECK(of_infinite[0].item<float>() == 0);
    CHECK(std::isnan(of_infinite[1].item<float>()));
    const auto [nan, of_nan] = clipped(std::nanf(""));
    CHECK(std::isnan(nan));
    CHECK(of_nan.isnan().all().item<bool>());
    CHECK(accelerator.clip_grad_norm_(std::vector{at::zeros({2}).requires_grad_()}, 1.0).item<float>() == 0);
  });
}

TEST_CASE("gradients that are kept over updates of fp16's scale count as they do without one") {
  // One model steps in every window and drops nothing, one in every second, and both are looked at in between.
  struct Scale : torch::nn::Module {
    Scale() : weight(register_parameter("weight", torch::ones({2}))) {}
    at::Tensor forward(double x) { return (weight * x).sum(); }
    at::Tensor weight;
  };
  const int ranks = GENERATE(1, 2), accumulation = GENERATE(1, 3);
  const bool clips = GENERATE(false, true), in_windows = GENERATE(true, false);
  if (!in_windows && accumulation > 1) return;
  const auto train = [&](Precision precision) {
    return on_ranks<std::vector<double>>(
        ranks,
        {.mixed_precision = precision,
         .grad_scaler = {.init_scale = 1024, .growth_interval = 1},
         .gradient_accumulation_steps = accumulation},
        [&](Accelerator& accelerator) {
          auto every = std::make_shared<Scale>(), second = std::make_shared<Scale>();
          torch::optim::SGD sgd(every->parameters(), 0.1), other(second->parameters(), 0.1);
          auto [model, model_2, optimizer, optimizer_2] = accelerator.prepare(every, second, sgd, other);
          std::vector<double> seen;
          for (int w = 0; w < 6; ++w) {
            for (int m = 0; m < accumulation; ++m) {
              std::unique_ptr<MicroBatch> window;
              // The last window is shorter.
              if (in_windows)
                window.reset(
                    new MicroBatch(w == 5 && m == 1 ? accelerator.accumulate_and_close() : accelerator.accumulate()));
              const double x = 1 + accelerator.rank() + w + m;
              accelerator.backward(every->forward(x) + second->forward(2 * x));
              if (!accelerator.sync_gradients()) continue;
              if (clips) accelerator.clip_grad_norm_(model, 3.0);
              optimizer.step();
              if (w % 2 == 1) {
                optimizer_2.step();
                optimizer_2.zero_grad(/*set_to_none=*/w == 1);
              }
              seen.push_back(every->weight[0].item<double>());
              seen.push_back(second->weight[0].item<double>());
              if (w == 5) break;
            }
          }
          return seen;
        });
  };
  const auto plain = train(Precision::no), scaled = train(Precision::fp16);
  for (std::size_t rank = 0; rank < plain.size(); ++rank)
    for (std::size_t i = 0; i < plain[rank].size(); ++i) {
      CAPTURE(ranks, accumulation, clips, in_windows, rank, i);
      CHECK(scaled[rank][i] == Approx(plain[rank][i]).epsilon(1e-4));
    }
}
