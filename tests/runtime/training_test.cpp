// Accumulation, reduction, clipping, schedules and preparation.
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"
#include "support/scale.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Ones : torch::data::datasets::Dataset<Ones, at::Tensor> {
  std::size_t length;
  explicit Ones(std::size_t length) : length(length) {}
  at::Tensor get(std::size_t) override { return at::ones({1}); }
  std::optional<std::size_t> size() const override { return length; }
};

using Trace = std::vector<int>;

Trace sync_trace(bool sync_with_dataloader) {
  const LaunchConfig config{.gradient_accumulation_steps = 2, .sync_with_dataloader = sync_with_dataloader};
  const auto traces = on_ranks<Trace>(2, config, [](Accelerator& accelerator) {
    Trace trace;
    auto loader = accelerator.prepare(data::DataLoader(Ones(10), {.batch_size = 1}));
    for (int epoch = 0; epoch < 2; ++epoch)
      for (auto& batch : loader) {
        (void)batch;
        auto window = accelerator.accumulate();
        trace.push_back(accelerator.sync_gradients());
      }
    return trace;
  });
  return traces[0];
}

}  // namespace

TEST_CASE("the window closes after as many micro-batches as asked for, and at the end of the loader") {
  CHECK(sync_trace(true) == Trace{0, 1, 0, 1, 1, 0, 1, 0, 1, 1});
  CHECK(sync_trace(false) == Trace{0, 1, 0, 1, 0, 1, 0, 1, 0, 1});
}

TEST_CASE("gradients are averaged over ranks and micro-batches, and stay local until the window closes") {
  // Micro-batch m of rank r has gradient 10 r + m.
  const auto gradients =
      on_ranks<std::vector<float>>(3, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
        Scale scale;
        auto model = accelerator.prepare(scale);
        std::vector<float> seen;
        for (int m = 0; m < 2; ++m) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(model(torch::full({1}, 10.0f * accelerator.rank() + m)).sum());
          seen.push_back(model->weight.grad().item<float>());
        }
        return seen;
      });
  for (int rank = 0; rank < 3; ++rank)
    CHECK(gradients[static_cast<std::size_t>(rank)] == std::vector<float>{10.0f * rank / 2, 10.5f});
}

TEST_CASE("a last, shorter window divides by its own length") {
  const int samples = GENERATE(1, 2, 3);  // of a window of 4
  const auto gradient = on_ranks<float>(2, {.gradient_accumulation_steps = 4}, [&](Accelerator& accelerator) {
    Scale scale;
    auto model = accelerator.prepare(scale);
    auto loader = accelerator.prepare(data::DataLoader(Ones(static_cast<std::size_t>(samples) * 2), {.batch_size = 1}));
    for (auto& batch : loader) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(batch).sum());
    }
    return model->weight.grad().item<float>();
  });
  CHECK(gradient[0] == Approx(1.0f));
}

TEST_CASE("backward with items gives the mean over all items of the window and of all ranks") {
  // Rank r has r + 1 items of value r in each of two micro-batches: mean = sum r (r + 1) / sum (r + 1).
  const auto gradient = on_ranks<float>(3, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
    Scale scale;
    auto model = accelerator.prepare(scale);
    const int items = accelerator.rank() + 1;
    for (int m = 0; m < 2; ++m) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(torch::full({items}, static_cast<float>(accelerator.rank()))).sum(), items);
    }
    return model->weight.grad().item<float>();
  });
  CHECK(gradient[0] == Approx((0.0 + 2.0 + 6.0) / 6.0));
  CHECK(gradient[0] == gradient[2]);
}

namespace {

// One weight under two names, large enough to be reduced in place.
struct TiedImpl : torch::nn::Module {
  torch::nn::Linear first{torch::nn::LinearOptions(50, 50).bias(false)}, second{first};
  TiedImpl() {
    register_module("first", first);
    register_module("second", second);
  }
  at::Tensor forward(const at::Tensor& x) { return second(first(x)); }
};
TORCH_MODULE(Tied);

}  // namespace

TEST_CASE("a tied weight's gradient is reduced once") {
  const auto input = [](int rank) { return at::full({rank + 1, 50}, 0.1F * static_cast<float>(rank + 1)); };
  const auto gradients = on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
    const int items = accelerator.rank() + 1;
    Tied module;
    auto model = accelerator.prepare(module);
    accelerator.backward(model(input(accelerator.rank())).sum(), items);
    const at::Tensor gradient = module->first->weight.grad().clone();
    const at::Tensor weight = module->first->weight.detach().clone();
    return std::vector<at::Tensor>{gradient, weight};
  });
  Tied alone;
  {
    const at::NoGradGuard no_grad;
    alone->first->weight.copy_(gradients[0][1]);
  }
  ((alone(input(0)).sum() + alone(input(1)).sum()) / 3).backward();
  CHECK(at::equal(gradients[0][0], gradients[1][0]));
  CHECK((gradients[0][0] - alone->first->weight.grad()).abs().max().item<float>() < 1e-6F);
}

TEST_CASE("a tied weight is clipped once") {
  for (const int ranks : {1, 2, 3}) {
    const auto seen = on_ranks<std::vector<at::Tensor>>(ranks, [&](Accelerator& accelerator) {
      Tied module;
      auto model = accelerator.prepare(module);
      accelerator.backward(model(at::full({2, 50}, 3.0F + static_cast<float>(accelerator.rank()))).sum());
      const at::Tensor before = module->first->weight.grad().clone();
      const at::Tensor norm = accelerator.clip_grad_norm_(model, 1.0);
      return std::vector<at::Tensor>{before, norm, module->first->weight.grad().clone()};
    });
    const double norm = seen[0][0].norm().item<double>();
    REQUIRE(norm > 2);
    for (const auto& rank : seen) {
      CHECK(rank[1].item<double>() == Approx(norm));
      CHECK(rank[2].norm().item<double>() == Approx(1.0).epsilon(1e-4));
      CHECK(at::equal(rank[2], seen[0][2]));
    }
  }
}

TEST_CASE("the form of backward is that of the passes, not of the micro-batches") {
  // A micro-batch without a backward is of neither form.
  CHECK_NOTHROW(run_ranks(1, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
    Scale scale;
    auto model = accelerator.prepare(scale);
    { auto window = accelerator.accumulate(model); }
    auto window = accelerator.accumulate(model);
    accelerator.backward(model(torch::ones({1})).sum(), 1);
  }));
  // A window begins anew.
  CHECK_NOTHROW(run_ranks(1, [](Accelerator& accelerator) {
    Scale scale;
    auto model = accelerator.prepare(scale);
    {
      const auto local = accelerator.no_sync(model);
      accelerator.backward(model(torch::ones({1})).sum());
    }
    auto window = accelerator.accumulate(model);
    accelerator.backward(model(torch::ones({1})).sum(), 1);
  }));
  // Nor do passes outside of micro-batches mix them.
  const auto error = run_ranks_expecting_error(1, [](Accelerator& accelerator) {
    Scale scale;
    auto model = accelerator.prepare(scale);
    {
      const auto local = accelerator.no_sync(model);
      accelerator.backward(model(torch::ones({1})).sum());
    }
    accelerator.backward(model(torch::ones({1})).sum(), 1);
  });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
}

TEST_CASE("what was reduced within a window is scaled with it on all ranks") {
  const auto gradients =
      on_ranks<std::vector<at::Tensor>>(2, {.gradient_accumulation_steps = 3}, [](Accelerator& accelerator) {
        torch::nn::ModuleList heads(torch::nn::Linear(2, 1), torch::nn::Linear(2, 1), torch::nn::Linear(2, 1));
        struct Heads : torch::nn::Module {
          explicit Heads(const torch::nn::ModuleList& all) : list(register_module("list", all)) {}
          torch::nn::ModuleList list;
        };
        auto model = accelerator.prepare(std::make_shared<Heads>(heads));
        const auto loss = [&](std::size_t head) {
          return model->list->ptr<torch::nn::LinearImpl>(head)->forward(at::ones({1, 2})).sum();
        };
        {
          const auto now = accelerator.trigger_sync_in_backward(model);
          auto window = accelerator.accumulate(model);
          accelerator.backward(
              loss(static_cast<std::size_t>(accelerator.rank())));  // heads of which others know nothing
        }
        auto window = accelerator.accumulate_and_close(model);  // of two micro-batches instead of three
        accelerator.backward(loss(2));
        std::vector<at::Tensor> seen;
        for (const at::Tensor& parameter : model->parameters()) seen.push_back(parameter.grad().clone());
        return seen;
      });
  for (std::size_t i = 0; i < gradients[0].size(); ++i) CHECK(at::equal(gradients[0][i], gradients[1][i]));
}

TEST_CASE("the two forms of backward do not mix in a window") {
  const auto error = run_ranks_expecting_error(1, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
    Scale scale;
    auto model = accelerator.prepare(scale);
    {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(torch::ones({1})).sum());
    }
    auto window = accelerator.accumulate(model);
    accelerator.backward(model(torch::ones({1})).sum(), 1);
  });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
}

TEST_CASE("no_sync keeps gradients local until the next backward outside of it") {
  const auto gradients = on_ranks<std::vector<float>>(2, [](Accelerator& accelerator) {
    Scale scale;
    auto model = accelerator.prepare(scale);
    const auto x = torch::full({1}, static_cast<float>(accelerator.rank()));
    std::vector<float> seen;
    {
      auto local = accelerator.no_sync(model);
      accelerator.backward(model(x).sum());
      seen.push_back(model->weight.grad().item<float>());
    }
    accelerator.backward(model(x).sum());
    seen.push_back(model->weight.grad().item<float>());
    return seen;
  });
  CHECK(gradients[0] == std::vector<float>{0.0f, 1.0f});
  CHECK(gradients[1] == std::vector<float>{1.0f, 1.0f});
}

TEST_CASE("a parameter that some ranks do not use counts as zero there, one that none uses has no gradient") {
  struct TwoImpl : torch::nn::Module {
    TwoImpl() {
      a = register_module("a", torch::nn::Linear(1, 1));
      b = register_module("b", torch::nn::Linear(1, 1));
      unused = register_module("unused", torch::nn::Linear(1, 1));
      frozen = register_parameter("frozen", torch::ones({1}), false);
    }
    at::Tensor forward(const at::Tensor& x, bool use_b) { return use_b ? b(x) : a(x); }
    torch::nn::Linear a{nullptr}, b{nullptr}, unused{nullptr};
    at::Tensor frozen;
  };
  const auto results = on_ranks<std::vector<float>>(4, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<TwoImpl>());
    accelerator.backward(model(torch::ones({1, 1}), accelerator.rank() == 3).sum());
    return std::vector<float>{model->a->bias.grad().item<float>(), model->b->bias.grad().item<float>(),
                              model->unused->bias.grad().defined() ? 1.0f : 0.0f,
                              model->frozen.grad().defined() ? 1.0f : 0.0f};
  });
  for (const auto& result : results) CHECK(result == std::vector<float>{0.75f, 0.25f, 0.0f, 0.0f});
}

TEST_CASE("clipping acts on the averaged gradient, after the window has closed, with one norm for all ranks") {
  using Norms = std::vector<double>;
  const auto norms = on_ranks<Norms>(2, {.gradient_accumulation_steps = 2}, [](Accelerator& accelerator) {
    Scale scale;
    auto model = accelerator.prepare(scale);
    Norms seen;
    for (int m = 0; m < 2; ++m) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(torch::full({1}, accelerator.rank() == 0 ? 2.0f : 6.0f)).sum());
      const auto norm = accelerator.clip_grad_norm_(model, 1.0);
      seen.push_back(norm.defined() ? norm.item<double>() : -1);
    }
    seen.push_back(model->weight.grad().item<float>());
    return seen;
  });
  for (const auto& seen : norms) {
    CHECK(seen[0] == -1);
    CHECK(seen[1] == Approx(4.0));
    CHECK(seen[2] == Approx(1.0).epsilon(1e-5));
  }
}

TEST_CASE("optimizer and scheduler act only when the window closes") {
  const int per_update = GENERATE(1, 2);
  const auto rates = on_ranks<std::vector<double>>(
      2, {.gradient_accumulation_steps = 2, .scheduler_steps_per_update = per_update}, [](Accelerator& accelerator) {
        Scale scale;
        torch::optim::SGD sgd(scale->parameters(), 1.0);
        Halving halving(sgd);
        auto [model, optimizer, scheduler] = accelerator.prepare(scale, sgd, halving);
        std::vector<double> seen;
        for (int m = 0; m < 4; ++m) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(model(torch::ones({1})).sum());
          optimizer.step();
          scheduler.step();
          optimizer.zero_grad();
          seen.push_back(sgd.param_groups()[0].options().get_lr());
          seen.push_back(model->weight.item<float>());
        }
        return seen;
      });
  if (per_update == 1)
    CHECK(rates[0] == std::vector<double>{1, 0, 0.5, -1, 0.5, -1, 0.25, -1.5});
  else
    CHECK(rates[0] == std::vector<double>{1, 0, 0.25, -1, 0.25, -1, 0.0625, -1.25});
}

TEST_CASE("prepare gives every rank rank 0's parameters, and buffers follow rank 0") {
  const auto results = on_ranks<std::vector<at::Tensor>>(3, [](Accelerator& accelerator) {
    torch::nn::BatchNorm1d norm(2);
    {
      const torch::NoGradGuard no_grad;
      norm->weight.fill_(accelerator.rank() + 1);
      norm->running_mean.fill_(accelerator.rank() + 1);
    }
    auto model = accelerator.prepare(norm);
    std::vector<at::Tensor> seen{model->weight.detach().clone(), model->running_mean.clone()};
    accelerator.backward(model(torch::randn({4, 2})).sum());  // ranks draw other numbers
    seen.push_back(model->running_mean.clone());
    return seen;
  });
  for (const auto& seen : results) {
    CHECK(at::equal(seen[0], torch::ones({2})));
    CHECK(at::equal(seen[1], torch::ones({2})));
    CHECK(at::equal(seen[2], results[0][2]));
  }
}

TEST_CASE("models that differ between ranks are an error that names the first difference") {
  const auto shape = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    torch::nn::Linear net(4, accelerator.is_main() ? 2 : 3);
    accelerator.prepare(net);
  });
  CHECK_THAT(shape.what(),
             ContainsSubstring("weight Float[3, 4] on rank 1") && ContainsSubstring("weight Float[2, 4]"));
  CHECK_THROWS_AS(shape.rethrow_cause(), ConfigError);
  const auto number = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    torch::nn::Linear net(torch::nn::LinearOptions(4, 2).bias(accelerator.is_main()));
    accelerator.prepare(net);
  });
  CHECK_THAT(number.what(), ContainsSubstring("bias Float[2]") && ContainsSubstring("nothing"));
}

TEST_CASE("what was prepared comes back as it is") {
  run_ranks(2, [](Accelerator& accelerator) {
    Scale scale;
    torch::optim::SGD sgd(scale->parameters(), 1.0);
    auto [model, optimizer] = accelerator.prepare(scale, sgd);
    auto [again, same_optimizer] = accelerator.prepare(model, optimizer);
    if (&*again != &*model || &again.reducer() != &model.reducer()) throw std::runtime_error("another model");
    if (&same_optimizer.inner() != &sgd) throw std::runtime_error("another optimizer");
    auto once_more = accelerator.prepare(scale);
    if (&once_more.reducer() != &model.reducer()) throw std::runtime_error("reduced twice");
  });
}
