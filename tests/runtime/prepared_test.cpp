// What programs do with what prepare returned, and with what they gave it.
#include <cmath>
#include <mutex>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include "support/error_of.h"
#include "support/ranks.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// A program's own functions, written before there was Tandem.
double rate_of(torch::optim::Optimizer& optimizer) { return optimizer.param_groups()[0].options().get_lr(); }
at::Tensor weight_of(torch::nn::Linear linear) { return linear->weight; }
std::size_t layers_in(const torch::nn::Sequential& net) { return net->size(); }

// And those of one that uses it.
void train(Accelerator& accelerator, PreparedModel<torch::nn::Linear> model, PreparedOptimizer optimizer,
           PreparedScheduler scheduler,
           const PreparedLoader<data::DataLoader<data::TensorDataset<at::Tensor>>>& batches) {
  for (auto& batch : batches) {
    auto window = accelerator.accumulate(model);
    accelerator.backward(model(batch).mean());
    optimizer.step();
    scheduler.step();
    optimizer.zero_grad();
  }
}

}  // namespace

TEST_CASE("what was given to prepare and what it returned serve the same functions") {
  run_ranks(2, [](Accelerator& a) {
    torch::nn::Linear net(4, 1);
    torch::nn::Sequential deep(torch::nn::Linear(4, 4), torch::nn::ReLU());
    torch::optim::SGD sgd(net->parameters(), 0.25);
    auto [model, stack, optimizer] = a.prepare(net, deep, sgd);
    const auto check = [](bool holds, const char* what) {
      if (!holds) throw std::runtime_error(what);
    };
    check(weight_of(model).is_same(net->weight) && weight_of(net).is_same(net->weight), "the holder of a model");
    check(layers_in(stack) == 2, "a Sequential");
    torch::nn::Linear holder = model;
    check(holder.ptr() == model.module(), "another module");
    check(rate_of(sgd) == 0.25 && rate_of(optimizer.inner()) == 0.25, "rates");
    for (auto& group : optimizer.param_groups()) group.options().set_lr(0.5);
    check(rate_of(sgd) == 0.5, "param_groups");
    stack.eval();
    check(!deep->is_training() && !stack.is_training(), "eval");
    stack.train();
    check(deep->is_training(), "train");
    check(model.named_parameters()["weight"].is_same(net->weight) && model.buffers().empty(), "names");
  });
}

TEST_CASE("a prepared model stays where it is, and says so when it is to go elsewhere") {
  const auto texts = on_ranks<std::vector<std::string>>(2, [](Accelerator& a) {
    auto model = a.prepare(torch::nn::Linear(2, 1));
    model.to(a.device());
    model.to(torch::kCPU);
    model.to(torch::kFloat);
    return std::vector<std::string>{error_of<ConfigError>([&] { model.to(at::Device(at::kMeta)); }),
                                    error_of<ConfigError>([&] { model.to(torch::kHalf); })};
  });
  CHECK_THAT(texts[1][0], ContainsSubstring("stays on its rank's device, cpu, and cannot go to meta"));
  CHECK_THAT(texts[1][1], ContainsSubstring("keeps its type, Float, and cannot become Half"));
}

TEST_CASE("clipping, files and averages take the module that was prepared, in any form") {
  const TempDir dir;
  const auto norms = on_ranks<std::vector<double>>(2, [&](Accelerator& a) {
    torch::nn::Linear net(2, 1);
    auto model = a.prepare(net);
    std::vector<double> seen;
    const auto clip = [&](const auto& what) {
      net->zero_grad();
      a.backward(model(torch::ones({1, 2})).sum() * 3);
      seen.push_back(a.clip_grad_norm_(what, 1.0).template item<double>());
      a.clip_grad_value_(what, 0.25);
      seen.push_back(net->weight.grad().abs().max().template item<double>());
    };
    clip(model);
    clip(net);
    clip(net.ptr());
    clip(net->parameters());
    const at::Tensor before = net->weight.detach().clone();
    a.save_model(net, dir / "a");
    a.save_model(net.ptr(), dir / "b");
    {
      const torch::NoGradGuard no_grad;
      net->weight.zero_();
    }
    a.load_model(net, dir / "a");
    seen.push_back(at::equal(net->weight, before) ? 1 : 0);
    optim::ExponentialMovingAverage of_holder(net), of_model(model), of_module(*net);
    return seen;
  });
  const double norm = std::sqrt(27.0);
  for (const auto& seen : norms) {
    REQUIRE(seen.size() == 9);
    for (std::size_t i = 0; i < 8; i += 2) {
      CHECK(std::abs(seen[i] - norm) < 1e-6);
      CHECK(seen[i + 1] == 0.25);
    }
    CHECK(seen[8] == 1);
  }
}

TEST_CASE("an empty module is an error for whoever needs one") {
  const auto texts = on_ranks<std::vector<std::string>>(2, [](Accelerator& a) {
    const torch::nn::Linear none(nullptr);
    return std::vector<std::string>{error_of<Error>([&] { a.clip_grad_norm_(none, 1.0); }),
                                    error_of<Error>([&] { a.save_model(none, "nowhere"); }),
                                    error_of<Error>([&] { a.load_model(none, "nowhere"); })};
  });
  for (const auto& text : texts[1]) CHECK_FALSE(text.empty());
}

TEST_CASE("modules and loaders may be temporaries, which the results keep") {
  const auto losses = on_ranks<double>(2, [](Accelerator& a) {
    auto [model, loader] = a.prepare(torch::nn::Linear(1, 1), data::DataLoader(data::TensorDataset(at::ones({4, 1}))));
    torch::optim::SGD sgd(model.parameters(), 0.1);
    auto [same, optimizer] = a.prepare(std::move(model), sgd);
    double sum = 0;
    for (auto& batch : loader) {
      a.backward(same(batch).mean());
      optimizer.step();
      sum += batch.sum().item<double>();
    }
    return sum;
  });
  CHECK(losses == std::vector<double>{2, 2});
}

TEST_CASE("short names of the types that prepare returns serve in signatures") {
  run_ranks(2, [](Accelerator& a) {
    torch::nn::Linear net(1, 1);
    torch::optim::SGD sgd(net->parameters(), 0.5);
    optim::StepLR schedule(sgd, 1, 0.5);
    data::DataLoader data(data::TensorDataset(at::ones({4, 1})), {.batch_size = 1});
    auto [model, optimizer, scheduler, batches] = a.prepare(net, sgd, schedule, data);
    train(a, model, optimizer, scheduler, batches);
    if (scheduler.updates() != 2) throw std::runtime_error("another number of updates");
  });
}

namespace {

// Two steps in bf16 of a net that `forward` is called on; what was told.
std::vector<std::string> told_about(
    const std::function<at::Tensor(Accelerator&, torch::nn::Linear&, nn::Model<torch::nn::LinearImpl>&)>& forward,
    Precision precision = Precision::bf16) {
  std::mutex mutex;
  std::vector<std::string> told;
  const auto warn = [&](const std::string& text) {
    const std::lock_guard lock(mutex);
    told.push_back(text);
  };
  run_ranks(2, {.mixed_precision = precision, .on_warning = warn}, [&](Accelerator& a) {
    torch::nn::Linear net(2, 1);
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto [model, optimizer] = a.prepare(net, sgd);
    for (int step = 0; step < 4; ++step) {
      auto window = a.accumulate(model);
      a.backward(forward(a, net, model));
      optimizer.step();
      optimizer.zero_grad();
    }
  });
  return told;
}

}  // namespace

TEST_CASE("a forward on the module itself under mixed precision is told of, once") {
  const at::Tensor x = torch::ones({1, 2});
  const auto told = told_about([&](Accelerator&, auto& net, auto&) { return net->forward(x).sum(); });
  REQUIRE(told.size() == 1);
  CHECK_THAT(told[0], ContainsSubstring("call what prepare returned"));
  CHECK(told_about([&](Accelerator&, auto&, auto& model) { return model(x).sum(); }).empty());
  CHECK(told_about([&](Accelerator& a, auto& net, auto&) {
          auto cast = a.autocast();
          return net->forward(x).sum();
        }).empty());
  CHECK(told_about([&](Accelerator&, auto& net, auto&) { return net->forward(x).sum(); }, Precision::no).empty());
}

TEST_CASE("a model that is a part of another one is not told of") {
  std::vector<std::string> told;
  const auto warn = [&](const std::string& text) { told.push_back(text); };
  run_ranks(1, {.mixed_precision = Precision::bf16, .on_warning = warn}, [](Accelerator& a) {
    torch::nn::Linear part(2, 2);
    torch::nn::Sequential whole(part, torch::nn::Linear(2, 1));
    auto [first, model] = a.prepare(part, whole);
    for (int step = 0; step < 3; ++step) a.backward(model(torch::ones({1, 2})).sum());
    static_cast<void>(first);
  });
  CHECK(told.empty());
}
