// Hooks beside the mean of the ranks' own gradients.
#include <cmath>
#include <set>

#include <torch/nn/modules/linear.h>

#include "nn/gradients.h"

using namespace tandem;
using namespace tandem::test;

namespace {

at::Tensor draw(at::IntArrayRef sizes, int seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(seed));
  return at::randn(sizes, generator);
}

// What one rank saw in a step: the reduced gradients, and what they were made from.
struct Step {
  std::vector<at::Tensor> reduced;
  std::vector<std::vector<at::Tensor>> of_ranks;  // undefined where a pass had none
};
using Steps = std::vector<Step>;

using MakeHook = std::function<nn::CommunicationHook(Accelerator&)>;

// Trains on ranks, with the hook from step `from` on. The ranks' own gradients are those of a copy that no one
// prepared.
std::vector<Steps> steps_on_ranks(int ranks, const Trial& trial, const MakeHook& make_hook, int from = 0) {
  return on_ranks<Steps>(ranks, trial.config, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(trial.make());
    initialise(*model);
    Steps seen;
    for (int step = 0; step < trial.steps; ++step) {
      if (step == from && make_hook) model.reducer().set_communication_hook(make_hook(accelerator));
      const auto own = trial.make();
      {
        const at::NoGradGuard no_grad;
        for (std::size_t i = 0; i < own->parameters().size(); ++i) own->parameters()[i].copy_(model->parameters()[i]);
      }
      trial.loss(*own, accelerator.rank(), step).backward();
      drop_gradients(*model);
      accelerator.backward(trial.loss(*model, accelerator.rank(), step));
      seen.push_back({gradients_of(*model), accelerator.gather_objects(gradients_of(*own))});
      descend(*model, 0.05);
    }
    return seen;
  });
}

// `function` of the ranks' gradients of parameter `i`, in double, summed; those that a rank has not are 0.
at::Tensor sum_over_ranks(const Step& step, std::size_t i,
                          const std::function<at::Tensor(const at::Tensor&)>& function) {
  at::Tensor sum;
  for (const auto& rank : step.of_ranks) {
    if (!rank[i].defined()) continue;
    const at::Tensor term = function(rank[i].to(at::kDouble));
    sum = sum.defined() ? sum + term : term;
  }
  return sum;
}

at::Tensor mean_of(const Step& step, std::size_t i) {
  const at::Tensor sum = sum_over_ranks(step, i, [](const at::Tensor& g) { return g; });
  return sum.defined() ? sum / static_cast<double>(step.of_ranks.size()) : sum;
}

// The largest |a - e| to the largest |e|.
double off(const at::Tensor& a, const at::Tensor& e) {
  return (a - e).abs().max().item<double>() / e.abs().max().item<double>();
}

Gradients reduced(const Steps& steps) {
  Gradients all;
  for (const Step& step : steps) all.push_back(step.reduced);
  return all;
}

std::string same_bits(const std::vector<Steps>& ranks) {
  for (const Steps& rank : ranks) {
    const auto found = difference(reduced(rank), reduced(ranks[0]), 0);
    if (!found.empty()) return found;
  }
  return "";
}

// SomeLayers of which each rank's pass uses some.
struct SomeLayers : torch::nn::Module {
  SomeLayers() {
    for (int i = 0; i < 4; ++i) layers.push_back(register_module("layer" + std::to_string(i), torch::nn::Linear(5, 5)));
  }
  at::Tensor forward(at::Tensor x, unsigned used) {
    for (unsigned i = 0; i < 4; ++i)
      if (used >> i & 1) x = torch::tanh(layers[i](x));
    return x.pow(2).mean();
  }
  std::vector<torch::nn::Linear> layers;
};

Trial layers_of_which_ranks_use_some() {
  Trial trial;
  trial.make = [] { return std::make_shared<SomeLayers>(); };
  trial.loss = [](torch::nn::Module& module, int rank, int step) {
    // Layer 2 on some ranks only, layer 3 on none before step 3.
    const unsigned used = 3u | (rank % 2 == 0 ? 4u : 0u) | (step >= 3 ? 8u : 0u);
    return static_cast<SomeLayers&>(module).forward(draw({3, 5}, 100 * rank + step), used);
  };
  return trial;
}

// Parameters whose gradients are given.
struct Given : torch::nn::Module {
  explicit Given(const std::vector<at::Tensor>& like) {
    for (std::size_t i = 0; i < like.size(); ++i)
      register_parameter(std::to_string(i), at::zeros_like(like[i], at::MemoryFormat::Preserve));
  }
  // Undefined ones are not reached.
  at::Tensor forward(const std::vector<at::Tensor>& gradients) {
    at::Tensor loss;
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      const at::Tensor term = (parameters()[i] * gradients[i]).sum();
      loss = loss.defined() ? loss + term : term;
    }
    return loss;
  }
};

using GivenGradients = std::function<std::vector<at::Tensor>(int rank, int step)>;

Trial given(const GivenGradients& gradients, int steps) {
  Trial trial;
  trial.make = [=] {
    auto all = gradients(0, 0);
    for (int step = 1; step < steps; ++step)  // also what the first passes do not reach
      for (std::size_t i = 0; i < all.size(); ++i)
        if (!all[i].defined()) all[i] = gradients(0, step)[i];
    return std::make_shared<Given>(all);
  };
  trial.loss = [=](torch::nn::Module& module, int rank, int step) {
    return static_cast<Given&>(module).forward(gradients(rank, step));
  };
  trial.steps = steps;
  return trial;
}

// Of a convolution's weight whose channels are last in memory, a matrix, a vector, a scalar and nothing: with means of
// matrix rank 2 over `ranks` ranks, each rank's own of full rank.
std::vector<at::Tensor> of_rank_two(int ranks, int rank, int step, at::ScalarType type = at::kFloat) {
  const auto matrix = [&](std::int64_t n, std::int64_t m, int seed) {
    const auto part = [&](at::IntArrayRef sizes, int k) { return draw(sizes, seed + 7 * step + k).to(type); };
    const double share = ranks == 1 ? 0 : rank == 0 ? 1 - ranks : 1;  // these add up to 0
    return at::matmul(part({n, 2}, 0), part({2, m}, 1)) + share * part({n, m}, 2);
  };
  return {matrix(12, 27, 1000).view({12, 3, 3, 3}).contiguous(at::MemoryFormat::ChannelsLast), matrix(16, 10, 2000),
          draw({9}, 3000 + rank), draw({}, 4000 + rank), at::empty({0, 3})};
}

MakeHook power_sgd_of(nn::PowerSgdOptions options) {
  return [options](Accelerator&) { return nn::power_sgd(options); };
}

// A rank's average of the results so far, beside the mean gradient.
double off_on_average(const Steps& steps, std::size_t count) {
  at::Tensor sum = at::zeros_like(steps[0].reduced[0]);
  for (std::size_t step = 0; step < count; ++step) sum += steps[step].reduced[0];
  return off(sum / static_cast<double>(count), mean_of(steps[0], 0));
}

}  // namespace

TEST_CASE("half-precision hooks give the mean within the type's precision, visibly rounded, from the first step on") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const bool bf16 = GENERATE(true, false);
  auto trial = layers_of_which_ranks_use_some();
  trial.config.gradient_reducer.bucket_bytes = GENERATE(1, 300, 25 << 20);
  trial.config.gradient_reducer.first_bucket_bytes = 1;
  trial.config.gradient_reducer.gradient_as_bucket_view = GENERATE(true, false);
  const auto seen = steps_on_ranks(
      ranks, trial, [&](Accelerator&) { return bf16 ? nn::bf16_compression() : nn::fp16_compression(); });
  CHECK(same_bits(seen) == "");
  const double unit = bf16 ? std::ldexp(1, -8) : std::ldexp(1, -11), smallest = bf16 ? 0 : std::ldexp(1, -25);
  for (const Step& step : seen[0])
    for (std::size_t i = 0; i < step.reduced.size(); ++i) {
      const at::Tensor mean = mean_of(step, i);
      REQUIRE(step.reduced[i].defined() == mean.defined());
      if (!mean.defined()) continue;
      const at::Tensor magnitude = sum_over_ranks(step, i, [](const at::Tensor& g) { return g.abs(); }) / ranks;
      const at::Tensor error = (step.reduced[i] - mean).abs();
      // 1 % for float32's own rounding, and products of roundings.
      CHECK((error <= 1.01 * (unit * (magnitude + mean.abs()) + 2 * smallest)).all().item<bool>());
      CHECK(error.max().item<double>() > 0.05 * unit * mean.abs().max().item<double>());
    }
}

TEST_CASE("what a hook does not compress is reduced as without one") {
  Trial trial = given(
      [](int rank, int step) -> std::vector<at::Tensor> {
        const int seed = 50 * rank + step;
        return {draw({20, 20}, seed).to(at::kBFloat16), draw({20, 20}, seed + 1).to(at::kHalf),
                at::complex(draw({20, 20}, seed + 2), draw({20, 20}, seed + 3))};
      },
      4);
  trial.loss = [loss = trial.loss](torch::nn::Module& module, int rank, int step) {
    return at::real(loss(module, rank, step));
  };
  const int hook = GENERATE(0, 1, 2);
  const auto set_up = [&](nn::GradientReducer& reducer) {
    reducer.set_communication_hook(hook == 0   ? nn::bf16_compression()
                                   : hook == 1 ? nn::fp16_compression()
                                               : nn::power_sgd({.start_powerSGD_iter = 0}));
  };
  const auto with = gradients_on_ranks(3, trial, set_up);
  CHECK(difference(with, gradients_on_ranks(3, trial)[0], 0) == "");
}

namespace {

// Notes what is called, and reduces to 3.
struct Noting final : comm::Communicator {
  Noting() : Communicator(0, 2, at::kCPU) {}
  std::uint64_t do_start_all_reduce(const comm::CallRecord&, at::TensorList inputs, at::TensorList outputs,
                                    comm::ReduceOp) override {
    calls.push_back("start " + std::string(c10::toString(inputs[0].scalar_type())));
    result = outputs[0];
    return 7;
  }
  void do_wait(std::uint64_t started) override {
    calls.push_back("wait " + std::to_string(started));
    result.fill_(3);
  }
  [[noreturn]] static void unexpected() { throw std::logic_error("no hook calls this"); }
  using Call = comm::CallRecord;
  void do_all_reduce(const Call&, at::TensorList, at::TensorList, comm::ReduceOp) override { unexpected(); }
  bool do_try_wait(std::uint64_t) override { unexpected(); }
  void do_forget_started() override { unexpected(); }
  void do_reduce(const Call&, at::TensorList, comm::ReduceOp, int) override { unexpected(); }
  void do_broadcast(const Call&, at::TensorList, int) override { unexpected(); }
  std::vector<at::Tensor> do_all_gather(const Call&, const at::Tensor&) override { unexpected(); }
  at::Tensor do_reduce_scatter(const Call&, const at::Tensor&, comm::ReduceOp) override { unexpected(); }
  std::vector<at::Tensor> do_all_to_all(const Call&, at::TensorList) override { unexpected(); }
  void do_barrier(const Call&) override { unexpected(); }

  std::vector<std::string> calls;
  at::Tensor result;
};

}  // namespace

TEST_CASE("hooks start their reduction when the bucket is complete, and wait when the pass has ended") {
  const auto [hook, type] = GENERATE(table<nn::CommunicationHook, std::string>(
      {{nn::bf16_compression(), "BFloat16"}, {nn::fp16_compression(), "Half"}, {nn::power_sgd(), "Float"}}));
  Noting communicator;
  nn::GradientBucket bucket;
  bucket.gradients = at::ones({16});
  bucket.parts = {bucket.gradients};
  bucket.parameters = {at::zeros({16})};
  const auto finish = hook(bucket, communicator);
  CHECK(communicator.calls == std::vector<std::string>{"start " + type});
  finish();
  CHECK(communicator.calls == std::vector<std::string>{"start " + type, "wait 7"});
  CHECK(bucket.gradients.eq(3).all().item<bool>());
}

TEST_CASE("a hook of the user's own reduces every gradient, whenever its parameter is first reached") {
  const int ranks = GENERATE(1, 2, 4);
  const int from = GENERATE(0, 2);
  const bool static_graph = GENERATE(false, true);
  auto trial = layers_of_which_ranks_use_some();
  if (static_graph)
    trial.loss = [](torch::nn::Module& module, int rank, int step) {
      return static_cast<SomeLayers&>(module).forward(draw({3, 5}, 100 * rank + step), 7);
    };
  trial.config.gradient_reducer.static_graph = static_graph;
  trial.config.gradient_reducer.bucket_bytes = GENERATE(1, 25 << 20);
  trial.config.gradient_reducer.gradient_as_bucket_view = GENERATE(true, false);
  const auto sum = [](Accelerator&) {
    return [](nn::GradientBucket& bucket, comm::Communicator& communicator) -> nn::FinishReduction {
      const auto number = communicator.start_all_reduce(bucket.gradients, bucket.gradients, comm::ReduceOp::sum);
      return [&communicator, number] { communicator.wait(number); };
    };
  };
  const auto seen = steps_on_ranks(ranks, trial, sum, from);
  CHECK(same_bits(seen) == "");
  for (int s = 0; s < trial.steps; ++s) {
    const Step& step = seen[0][static_cast<std::size_t>(s)];
    for (std::size_t i = 0; i < step.reduced.size(); ++i) {
      const at::Tensor mean = mean_of(step, i);
      REQUIRE(step.reduced[i].defined() == mean.defined());
      if (mean.defined()) CHECK(off(step.reduced[i], s < from ? mean : mean * ranks) < 1e-5);
    }
  }
}

TEST_CASE("a hook gets only gradients that passes reach, also when it is set later, others stay as they are") {
  const bool later = GENERATE(true, false);
  struct Seen {
    std::vector<float> kept, used;
    std::size_t parts = 0;  // most that the hook got in a bucket
  };
  const LaunchConfig config{.gradient_reducer = {.gradient_as_bucket_view = GENERATE(true, false)}};
  const auto train = [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<Given>(std::vector{at::ones({1}), at::ones({1})}));
    Seen seen;
    const auto set_hook = [&] {
      model.reducer().set_communication_hook(
          [&](nn::GradientBucket& bucket, comm::Communicator& communicator) -> nn::FinishReduction {
            if (later) seen.parts = std::max(seen.parts, bucket.parts.size());
            const auto number = communicator.start_all_reduce(bucket.gradients, bucket.gradients, comm::ReduceOp::sum);
            return [&communicator, number] { communicator.wait(number); };
          });
    };
    if (!later) set_hook();
    for (int step = 0; step < 5; ++step) {
      if (later && step == 3) set_hook();
      // The first parameter only at first; its gradient is kept.
      model->parameters()[1].mutable_grad().reset();
      const at::Tensor x = at::full({1}, 1.0F + static_cast<float>(accelerator.rank()));
      accelerator.backward(model(std::vector{step < 1 ? x : at::Tensor(), x}));
      seen.kept.push_back(model->parameters()[0].grad().item<float>());
      seen.used.push_back(model->parameters()[1].grad().item<float>());
    }
    return seen;
  };
  for (const Seen& rank : on_ranks<Seen>(2, config, train)) {
    CHECK(rank.used == (later ? std::vector<float>{1.5, 1.5, 1.5, 3, 3} : std::vector<float>(5, 3)));
    CHECK(rank.kept == std::vector<float>(5, later ? 1.5F : 3));
    if (later) CHECK(rank.parts == 1);
  }
}

TEST_CASE("PowerSGD is exact where the mean gradient has a low rank, whatever the ranks' own have") {
  // Rounding weighs more than usual: an unlucky Q sees little of one of the two directions.
  const auto [type, tolerance] = GENERATE(table<at::ScalarType, double>({{at::kFloat, 2e-3}, {at::kDouble, 1e-9}}));
  const int ranks = GENERATE(1, 2, 3, 4);
  Trial trial = given([=](int rank, int step) { return of_rank_two(ranks, rank, step, type); }, 5);
  trial.config.gradient_reducer.bucket_bytes = GENERATE(1, 25 << 20);
  trial.config.gradient_reducer.gradient_as_bucket_view = GENERATE(true, false);
  const nn::PowerSgdOptions options{.matrix_approximation_rank = 2,
                                    .start_powerSGD_iter = 0,
                                    .use_error_feedback = GENERATE(true, false),
                                    .warm_start = GENERATE(true, false)};
  const auto seen = steps_on_ranks(ranks, trial, power_sgd_of(options));
  CHECK(same_bits(seen) == "");
  for (const Step& step : seen[0])
    for (std::size_t i = 0; i < 4; ++i) CHECK(off(step.reduced[i], mean_of(step, i)) < (i < 2 ? tolerance : 1e-6));
  CHECK(seen[0][0].reduced[4].numel() == 0);
}

TEST_CASE("PowerSGD compresses what min_compression_rate asks for, from start_powerSGD_iter on") {
  const int start = GENERATE(0, 3);
  const double rate = GENERATE(2.0, 5.0);
  // Rank 1 stands for 30 x 20 in 50 elements, 12 times less, for 6 x 8 in 14, 3.4 times less.
  const Trial trial = given(
      [](int rank, int step) -> std::vector<at::Tensor> {
        return {draw({30, 20}, 10 * step + rank), draw({6, 8}, 500 + 10 * step + rank), draw({40}, 900 + rank)};
      },
      5);
  const auto seen =
      steps_on_ranks(3, trial, power_sgd_of({.start_powerSGD_iter = start, .min_compression_rate = rate}));
  for (int s = 0; s < trial.steps; ++s) {
    const Step& step = seen[0][static_cast<std::size_t>(s)];
    const auto is_mean = [&](std::size_t i) { return off(step.reduced[i], mean_of(step, i)) < 1e-6; };
    CHECK(is_mean(0) == (s < start));
    CHECK(is_mean(1) == (s < start || rate > 4));
    CHECK(is_mean(2));
    if (s >= start) CHECK(at::linalg_matrix_rank(step.reduced[0], 1e-4).item<int>() == 1);
  }
}

TEST_CASE("with error feedback the average over the steps becomes the gradient, without it does not") {
  const Trial trial = given([](int rank, int) -> std::vector<at::Tensor> { return {draw({8, 6}, 1 + rank)}; }, 240);
  nn::PowerSgdOptions options{.matrix_approximation_rank = 2,
                              .start_powerSGD_iter = 0,
                              .min_compression_rate = 1,
                              .warm_start = GENERATE(true, false)};
  const auto with = steps_on_ranks(3, trial, power_sgd_of(options))[0];
  options.use_error_feedback = false;
  const auto without = steps_on_ranks(3, trial, power_sgd_of(options))[0];
  CAPTURE(off_on_average(with, 60), off_on_average(with, 240), off_on_average(without, 60),
          off_on_average(without, 240));
  CHECK(off_on_average(with, 60) < 0.1);
  CHECK(off_on_average(with, 240) < 0.025);
  CHECK(off_on_average(without, 240) > 0.1);
}

TEST_CASE("PowerSGD's state belongs to the parameters and stays when the buckets change") {
  // Two of three get the same gradients whether or not the other one is used at times, which changes the buckets. That
  // one comes last in a pass, and draws its Q after theirs.
  const auto trial = [](bool other) {
    Trial trial = given(
        [=](int rank, int step) -> std::vector<at::Tensor> {
          const bool now = other && step % 4 < 2;
          return {now ? draw({9, 7}, 21 + rank) : at::Tensor(), draw({8, 6}, 1 + rank), draw({8, 6}, 11 + rank)};
        },
        16);
    trial.make = [] {
      return std::make_shared<Given>(std::vector{at::ones({9, 7}), at::ones({8, 6}), at::ones({8, 6})});
    };
    return trial;
  };
  std::set<std::vector<std::int64_t>> layouts;  // that rank 0 has seen
  const MakeHook make = [&](Accelerator& accelerator) -> nn::CommunicationHook {
    return [&, hook = nn::power_sgd({.start_powerSGD_iter = 0, .min_compression_rate = 1}),
            main = accelerator.is_main()](nn::GradientBucket& bucket, comm::Communicator& communicator) {
      std::vector<std::int64_t> layout;
      for (const auto& part : bucket.parts) layout.push_back(part.numel());
      if (main) layouts.insert(layout);
      return hook(bucket, communicator);
    };
  };
  const auto steady = steps_on_ranks(2, trial(false), make);
  CHECK(layouts.size() == 1);
  const auto changing = steps_on_ranks(2, trial(true), make);
  CHECK(layouts.size() == 3);  // and all three parameters, and the other one alone
  CHECK(same_bits(changing) == "");
  for (std::size_t step = 0; step < 16; ++step)
    for (const std::size_t i : {1, 2}) CHECK(off(changing[0][step].reduced[i], steady[0][step].reduced[i]) < 1e-5);
}

TEST_CASE("PowerSGD gives the same bits in every run, others with another seed, and draws nothing from the rank") {
  Trial trial = layers_of_which_ranks_use_some();
  trial.config.gradient_reducer.bucket_bytes = GENERATE(1, 25 << 20);
  const auto run = [&](std::uint64_t seed) {
    return steps_on_ranks(
        3, trial,
        power_sgd_of({.start_powerSGD_iter = 1, .min_compression_rate = 1, .warm_start = false, .random_seed = seed}));
  };
  const auto first = run(0);
  CHECK(same_bits(first) == "");
  for (int i = 0; i < 5; ++i) CHECK(difference(reduced(run(0)[0]), reduced(first[0]), 0) == "");
  CHECK(difference(reduced(run(1)[0]), reduced(first[0])) != "");
  const auto drawn_after = [&](const MakeHook& hook) {
    return on_ranks<double>(2, [&](Accelerator& accelerator) {
      auto model = accelerator.prepare(trial.make());
      if (hook) model.reducer().set_communication_hook(hook(accelerator));
      for (int step = 0; step < 3; ++step) accelerator.backward(trial.loss(*model, accelerator.rank(), step));
      return torch::rand({}).item<double>();
    });
  };
  CHECK(drawn_after(power_sgd_of({.start_powerSGD_iter = 0, .min_compression_rate = 1})) == drawn_after({}));
}

TEST_CASE("PowerSGD goes on after gradients of 0 and after gradients that are not finite") {
  const double bad = GENERATE(0.0, INFINITY, NAN);
  const Trial trial = given(
      [=](int rank, int step) -> std::vector<at::Tensor> {
        auto gradients = of_rank_two(2, rank, step);
        if (step == 2) gradients[1] = at::full_like(gradients[1], bad);
        return gradients;
      },
      5);
  const auto seen = steps_on_ranks(2, trial, power_sgd_of({.matrix_approximation_rank = 2, .start_powerSGD_iter = 0}));
  CHECK(seen[0][2].reduced[1].isfinite().all().item<bool>() == (bad == 0));
  for (const std::size_t step : {3, 4}) CHECK(off(seen[0][step].reduced[1], mean_of(seen[0][step], 1)) < 2e-3);
}

TEST_CASE("PowerSGD begins anew for a model whose type changes") {
  Trial trial;
  trial.make = [] { return std::make_shared<Given>(of_rank_two(2, 0, 0)); };
  trial.before_step = [](torch::nn::Module& module, int step) {
    if (step == 3) module.to(at::kDouble);
  };
  trial.loss = [](torch::nn::Module& module, int rank, int step) {
    return static_cast<Given&>(module).forward(of_rank_two(2, rank, step));
  };
  const auto seen = gradients_on_ranks(2, trial, [](nn::GradientReducer& reducer) {
    reducer.set_communication_hook(nn::power_sgd({.matrix_approximation_rank = 2, .start_powerSGD_iter = 0}));
  });
  CHECK(seen[0][5][0].scalar_type() == at::kDouble);
  CHECK(difference(seen, gradients_of_all(2, trial), 2e-3) == "");
}

TEST_CASE("PowerSGD says which of its options is wrong") {
  const auto error = [](const nn::PowerSgdOptions& options) -> std::string {
    try {
      nn::power_sgd(options);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(error({}) == "");
  CHECK_THAT(error({.matrix_approximation_rank = 0}), ContainsSubstring("matrix_approximation_rank 0"));
  CHECK_THAT(error({.start_powerSGD_iter = -1}), ContainsSubstring("start_powerSGD_iter -1"));
  for (const double rate : {0.0, -2.0, static_cast<double>(NAN), static_cast<double>(INFINITY)})
    CHECK_THAT(error({.min_compression_rate = rate}), ContainsSubstring("min_compression_rate"));
}
