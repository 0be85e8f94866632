// The reducer's options, errors and order.
#include <limits>
#include <random>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "nn/gradients.h"
#include "support/error_of.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Two : torch::nn::Module {
  Two() {
    a = register_module("a", torch::nn::Linear(4, 4));
    b = register_module("b", torch::nn::Linear(4, 4));
    never = register_module("never", torch::nn::Linear(4, 4));
  }
  at::Tensor forward(const at::Tensor& x, bool with_b) {
    const auto y = a(x);
    return (with_b ? b(y) : y).pow(2).mean();
  }
  torch::nn::Linear a{nullptr}, b{nullptr}, never{nullptr};
};

at::Tensor row(int rank, int step) { return at::full({2, 4}, 0.1F * static_cast<float>(rank + 2 * step + 1)); }

// Multiplies by 1 and does `then` in backward.
struct InBackward : torch::autograd::Function<InBackward> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const std::function<void()>* then) {
    context->saved_data["then"] = reinterpret_cast<std::int64_t>(then);
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    (*reinterpret_cast<const std::function<void()>*>(context->saved_data["then"].toInt()))();
    return {gradients[0], at::Tensor()};
  }
};

}  // namespace

TEST_CASE("parameters that no rank's pass has reached are named") {
  const auto names = on_ranks<std::vector<std::string>>(3, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<Two>());
    accelerator.backward(model(row(accelerator.rank(), 0), accelerator.rank() == 2));
    return model.reducer().unused_parameters();
  });
  for (const auto& list : names) CHECK(list == std::vector<std::string>{"never.weight", "never.bias"});
}

TEST_CASE("gradients are views of few buckets, or have memory of their own") {
  const bool as_view = GENERATE(true, false);
  const LaunchConfig config{.gradient_reducer = {.gradient_as_bucket_view = as_view, .share_gradients = false}};
  const auto storages = on_ranks<std::size_t>(2, config, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<Two>());
    for (int step = 0; step < 2; ++step) {
      drop_gradients(*model);
      accelerator.backward(model(row(accelerator.rank(), step), true));
    }
    std::set<const void*> storages;
    for (const auto& parameter : model->parameters())
      if (parameter.grad().defined()) storages.insert(parameter.grad().storage().data());
    return storages.size();
  });
  CHECK(storages[0] == (as_view ? 1u : 4u));
}

TEST_CASE("a static graph gives the same gradients, and is an error that names the parameter when it is not static") {
  const bool keeps = GENERATE(true, false);
  Trial trial;
  trial.make = [] { return std::make_shared<Two>(); };
  trial.loss = [&](torch::nn::Module& module, int rank, int step) {
    return static_cast<Two&>(module).forward(row(rank, step), keeps || step < 3);
  };
  trial.config.gradient_reducer.static_graph = true;
  trial.config.gradient_reducer.bucket_bytes = GENERATE(1, 25 << 20);
  if (keeps) {
    CHECK(difference(gradients_on_ranks(3, trial), gradients_of_all(3, trial)) == "");
  } else {
    CHECK_THROWS_WITH(gradients_on_ranks(3, trial), ContainsSubstring("static_graph") &&
                                                        ContainsSubstring("b.weight") && ContainsSubstring("0 times"));
  }
}

TEST_CASE("a static graph may differ between ranks, and have sparse gradients") {
  Trial trial;
  trial.make = [] { return std::make_shared<Two>(); };
  trial.loss = [](torch::nn::Module& module, int rank, int step) {
    return static_cast<Two&>(module).forward(row(rank, step), rank == 0);
  };
  trial.config.gradient_reducer.static_graph = true;
  trial.config.gradient_reducer.bucket_bytes = GENERATE(1, 25 << 20);
  CHECK(difference(gradients_on_ranks(3, trial), gradients_of_all(3, trial)) == "");

  struct Words : torch::nn::Module {
    Words() {
      words = register_module("words", torch::nn::Embedding(torch::nn::EmbeddingOptions(7, 4).sparse(true)));
      a = register_module("a", torch::nn::Linear(4, 4));
    }
    torch::nn::Embedding words{nullptr};
    torch::nn::Linear a{nullptr};
  };
  trial.make = [] { return std::make_shared<Words>(); };
  trial.loss = [](torch::nn::Module& module, int rank, int step) {
    auto& words = static_cast<Words&>(module);
    return words.a(words.words(at::tensor({rank, (rank + step) % 7}, at::kLong))).pow(2).mean();
  };
  CHECK(difference(gradients_on_ranks(3, trial), gradients_of_all(3, trial)) == "");
}

TEST_CASE("buffers are rank 0's after a reduction, or stay each rank's own") {
  const bool broadcast = GENERATE(true, false);
  const auto means =
      on_ranks<float>(2, {.gradient_reducer = {.broadcast_buffers = broadcast}}, [](Accelerator& accelerator) {
        auto model = accelerator.prepare(torch::nn::BatchNorm1d(4));
        accelerator.backward(model(row(accelerator.rank(), 0)).sum());
        return model->running_mean.sum().item<float>();
      });
  CHECK((means[0] == means[1]) == broadcast);
}

TEST_CASE("a parameter that was added takes part once the model is prepared again, and is an error before") {
  const bool prepares = GENERATE(true, false);
  Trial trial;
  trial.steps = 4;
  const auto grow = [](torch::nn::Module& module, int step) {
    if (step != 2) return;
    module.register_parameter("added", torch::full({4}, 0.3F));
  };
  const auto loss = [](Two& two, int rank, int step) {
    const auto parameters = two.named_parameters();
    const auto y = two.forward(row(rank, step), true);
    return parameters.contains("added") ? y + (row(rank, step) * parameters["added"]).pow(2).sum() : y;
  };
  trial.make = [] { return std::make_shared<Two>(); };
  trial.before_step = grow;
  trial.loss = [&](torch::nn::Module& module, int rank, int step) {
    return loss(static_cast<Two&>(module), rank, step);
  };
  const auto run = [&] {
    return on_ranks<Gradients>(2, [&](Accelerator& accelerator) {
      const auto module = std::make_shared<Two>();
      auto model = accelerator.prepare(module);
      initialise(*module);
      Gradients seen;
      for (int step = 0; step < trial.steps; ++step) {
        grow(*model, step);
        if (step == 2 && prepares) accelerator.prepare(module);
        drop_gradients(*model);
        accelerator.backward(loss(*model, accelerator.rank(), step));
        seen.push_back(gradients_of(*model));
        descend(*model, 0.05);
      }
      return seen;
    });
  };
  if (prepares)
    CHECK(difference(run(), gradients_of_all(2, trial)) == "");
  else
    CHECK_THROWS_WITH(run(), ContainsSubstring("parameter added") && ContainsSubstring("prepare(model) again"));
}

TEST_CASE("a module that is made once for all ranks is an error that says where to make it") {
  torch::nn::Linear one(4, 4);
  const std::string error = error_of<Error>([&] { launch({.cpu = 2}, [&](Accelerator& a) { a.prepare(one); }); });
  CHECK_THAT(error, ContainsSubstring(
                        "parameter weight of rank 1 is the very tensor of rank 0; make the module within the body"));
}

TEST_CASE("a model whose type changes between steps goes on") {
  Trial trial;
  trial.make = [] { return std::make_shared<Two>(); };
  trial.before_step = [](torch::nn::Module& module, int step) {
    if (step == 3) module.to(at::kDouble);
  };
  trial.loss = [](torch::nn::Module& module, int rank, int step) {
    return static_cast<Two&>(module).forward(row(rank, step).to(step < 3 ? at::kFloat : at::kDouble), true);
  };
  CHECK(difference(gradients_on_ranks(2, trial), gradients_of_all(2, trial)) == "");
}

TEST_CASE("trigger_sync_in_backward reduces in the middle of a window, and the window's gradients stay right") {
  // A window of 3 micro-batches; the second is reduced early.
  const auto seen = on_ranks<Gradients>(2, {.gradient_accumulation_steps = 3}, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<Two>());
    initialise(*model);
    Gradients all;
    for (int m = 0; m < 3; ++m) {
      auto window = accelerator.accumulate(model);
      const auto loss = model(row(accelerator.rank(), m), true);
      if (m == 1) {
        auto sync = accelerator.trigger_sync_in_backward(model);
        accelerator.backward(loss);
      } else {
        accelerator.backward(loss);
      }
      all.push_back(gradients_of(*model));
    }
    return all;
  });
  Two alone;
  initialise(alone);
  Gradients expected;
  for (int m = 0; m < 3; ++m) {
    for (int rank = 0; rank < 2; ++rank) (alone.forward(row(rank, m), true) / 6).backward();
    expected.push_back(gradients_of(alone));
  }
  const auto steps = [](const Gradients& g, std::size_t from) {
    return Gradients(g.begin() + static_cast<int>(from), g.end());
  };
  CHECK(difference({steps(seen[0], 1), steps(seen[1], 1)}, steps(expected, 1)) == "");
  CHECK(difference(seen[0], seen[1], 0) != "");  // after the first micro-batch they still were the ranks' own
}

TEST_CASE("an exception in backward, in a hook or in the model ends all ranks with it, whatever has started") {
  const int where = GENERATE(0, 1, 2, 3);
  const auto error = run_ranks_expecting_error(
      3, {.gradient_reducer = {.bucket_bytes = 1, .first_bucket_bytes = 1}}, [&](Accelerator& accelerator) {
        auto model = accelerator.prepare(std::make_shared<Two>());
        const bool mine = accelerator.rank() == 1;
        const std::function<void()> fail = [] { throw std::runtime_error("on fire"); };
        const std::function<void()> nothing = [] {};
        for (int step = 0; step < 5; ++step) {
          drop_gradients(*model);
          const bool now = mine && step == 3;
          if (now && where == 0) fail();
          auto x = row(accelerator.rank(), step).requires_grad_();
          // b's bucket has started when backward gets here.
          if (where == 1) x = InBackward::apply(model->a(x), now ? &fail : &nothing);
          if (now && where == 2) model->a->weight.register_hook([&](const at::Tensor&) { fail(); });
          if (where == 3)
            model.reducer().set_communication_hook(
                [&](nn::GradientBucket&, comm::Communicator&) -> nn::FinishReduction {
                  if (now) fail();
                  return [] {};
                });
          accelerator.backward(model(x, true));
        }
      });
  CHECK(error.rank() == 1);
  CHECK_THAT(error.what(), ContainsSubstring("on fire"));
}

TEST_CASE("a rank that swallows the error of its backward pass is an error for all, not another gradient") {
  const std::size_t bytes = GENERATE(1, 25 << 20);  // some buckets have started, or none
  const auto error = run_ranks_expecting_error(
      2, {.gradient_reducer = {.bucket_bytes = bytes, .first_bucket_bytes = bytes}}, [&](Accelerator& accelerator) {
        auto model = accelerator.prepare(std::make_shared<Two>());
        const std::function<void()> fail = [] { throw std::runtime_error("swallowed"); };
        const std::function<void()> nothing = [] {};
        for (int step = 0; step < 5; ++step) {
          drop_gradients(*model);
          const bool now = accelerator.rank() == 1 && step == 3;
          const auto x = InBackward::apply(model->a(row(accelerator.rank(), step)), now ? &fail : &nothing);
          try {
            accelerator.backward(model(x, true));
          } catch (const std::runtime_error&) {
          }
        }
      });
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
}

TEST_CASE("the same bits over 20 runs, whatever the ranks' delays") {
  std::optional<Gradients> first;
  for (int run = 0; run < 20; ++run) {
    Trial trial;
    trial.make = [] {
      torch::nn::Sequential net(torch::nn::Linear(4, 40), torch::nn::Tanh(), torch::nn::Linear(40, 40),
                                torch::nn::Tanh(), torch::nn::Linear(40, 3));
      return net.ptr();
    };
    trial.loss = [run](torch::nn::Module& module, int rank, int step) {
      static thread_local std::mt19937 random;
      if (step == 0) random.seed(static_cast<unsigned>(100 * run + rank));
      static thread_local std::function<void()> pause = [] {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
      };
      pause();
      auto& net = static_cast<torch::nn::SequentialImpl&>(module);
      return InBackward::apply(net.forward(row(rank, step)), &pause).pow(2).mean();
    };
    trial.config.gradient_reducer.bucket_bytes = 1000;
    trial.config.gradient_reducer.first_bucket_bytes = 100;
    const auto seen = gradients_on_ranks(4, trial);
    if (!first) first = seen[0];
    for (const auto& rank : seen) REQUIRE(difference(rank, *first, 0) == "");
  }
}

TEST_CASE("check_finite finds infinite and NaN values in dense and sparse gradients of CPU ranks") {
  const bool sparse = GENERATE(false, true);
  const int ranks = GENERATE(1, 2);
  const auto train_with = [&](double factor) {
    return [=](Accelerator& accelerator) {
      torch::nn::Embedding table(torch::nn::EmbeddingOptions(10, 4).sparse(sparse));
      auto model = accelerator.prepare(table);
      for (int pass = 1; pass <= 3; ++pass) {
        const double mine = pass == 2 && accelerator.is_last() ? factor : 1.0;
        accelerator.backward(model(at::arange(3)).sum() * mine);
        table->weight.mutable_grad().reset();
      }
    };
  };
  const LaunchConfig config{.gradient_reducer = {.check_finite = true}};
  run_ranks(ranks, config, train_with(1.0));
  run_ranks(ranks, train_with(std::numeric_limits<double>::quiet_NaN()));  // is off by default
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const auto error = run_ranks_expecting_error(ranks, config, train_with(bad));
    CHECK_THAT(error.what(), ContainsSubstring("a gradient of reduction 2 (counted from 1) is infinite or NaN"));
  }
}
