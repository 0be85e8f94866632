// Sessions whose ranks have GPUs, with a fake CUDA.
#include <cmath>
#include <thread>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/fake_machine.h"
#include "support/ranks.h"
#include "support/temp_dir.h"
#include "tandem/session/session.h"

using namespace tandem;
using namespace tandem::test;
using namespace std::chrono_literals;

namespace {

void train(Accelerator& accelerator, int epochs, std::vector<at::Tensor>* weights) {
  torch::nn::Linear net(4, 3);
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  const at::Tensor points = at::linspace(-1, 1, 96).view({24, 4}), classes = at::arange(24).remainder(3);
  auto [model, optimizer, loader] = accelerator.prepare(
      net, sgd, data::DataLoader(data::TensorDataset(points, classes), {.batch_size = 2, .shuffle = true}));
  while (loader.epoch() < epochs && !accelerator.stop_requested())
    for (auto& batch : loader) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(torch::nn::functional::cross_entropy(model(batch.data), batch.target));
      optimizer.step();
      optimizer.zero_grad();
    }
  if (weights && accelerator.is_main())
    for (const auto& parameter : model.parameters()) weights->push_back(parameter.detach().to(at::kCPU));
}

}  // namespace

TEST_CASE("a session on GPU ranks is paused, shown and stopped, and gives what a launch gives") {
  std::vector<at::Tensor> launched, paused;
  fake::reset();
  const Machine machine;
  const auto config = machine.config({0, 1});
  launch(config, [&](Accelerator& accelerator) { train(accelerator, 6, &launched); });
  Session session;
  session.start(config, [&](Accelerator& accelerator) { train(accelerator, 6, &paused); });
  for (int i = 0; i < 5; ++i) {
    session.pause({.release_memory = true});
    std::this_thread::sleep_for(1ms);
    session.snapshot();
    session.resume();
  }
  session.wait();
  const ModelSnapshot final_weights = session.snapshot().get();
  REQUIRE(paused.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(at::equal(launched[i], paused[i]));
    CHECK(final_weights.models[0][i].second.is_cpu());
    CHECK(at::equal(launched[i], final_weights.models[0][i].second));
  }
  CHECK(std::isfinite(session.progress().loss));

  session.start(config, [&](Accelerator& accelerator) { train(accelerator, 1'000'000, nullptr); });
  for (int i = 0; i < 20'000 && !(session.progress().loss > 0); ++i) std::this_thread::sleep_for(1ms);
  CHECK(session.progress().loss > 0);  // fetched while it trains
  CHECK(session.snapshot().get().models[0][0].second.is_cpu());
  session.request_stop();
  session.wait();
  CHECK(session.status().state == SessionState::ended);
  machine.check_clean();
}

TEST_CASE("sessions on GPUs of their own run at once, each as its launch does, also when the other one fails") {
  fake::reset();
  const Machine machine;
  std::vector<LaunchConfig> configs;
  std::vector<std::vector<at::Tensor>> launched(2), together(2);
  for (int device = 0; device < 2; ++device) {
    configs.push_back(machine.config({device}));
    configs.back().seed = static_cast<std::uint64_t>(device) + 5;
  }
  const auto body = [](std::vector<at::Tensor>& weights) {
    return [&weights](Accelerator& accelerator) { train(accelerator, 6, &weights); };
  };
  for (std::size_t i = 0; i < 2; ++i) launch(configs[i], body(launched[i]));
  CHECK_FALSE(at::equal(launched[0].at(0), launched[1].at(0)));
  Session first, second;
  first.start(configs[0], body(together[0]));
  second.start(configs[1], body(together[1]));
  first.wait();
  second.wait();
  for (std::size_t i = 0; i < 2; ++i)
    for (std::size_t k = 0; k < 2; ++k) CHECK(at::equal(launched[i].at(k), together[i].at(k)));

  together[1].clear();
  first.start(configs[0], [](Accelerator& accelerator) {
    train(accelerator, 1, nullptr);
    throw std::runtime_error("no such splat");
  });
  second.start(configs[1], body(together[1]));
  CHECK_THROWS_AS(first.wait(), RankError);
  second.wait();
  CHECK(first.status().state == SessionState::failed);
  CHECK(second.status().state == SessionState::ended);
  for (std::size_t k = 0; k < 2; ++k) CHECK(at::equal(launched[1].at(k), together[1].at(k)));
  machine.check_clean();
}

TEST_CASE("files get weights that the device has computed, also when several threads write them") {
  fake::reset();
  const Machine machine;
  const TempDir dir;
  launch(machine.config({0, 1}), [&](Accelerator& accelerator) {
    torch::nn::Sequential net(torch::nn::Linear(64, 64), torch::nn::Linear(64, 64), torch::nn::Linear(64, 3));
    torch::optim::SGD sgd(net->parameters(), 0.05);
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    for (int i = 0; i < 60; ++i) {
      accelerator.backward(model(at::ones({2, 64}, accelerator.device())).sum());
      optimizer.step();
      optimizer.zero_grad();
      accelerator.save_model(model, dir / "model", {.max_shard_bytes = 10'000});
    }
  });
  machine.check_clean();
}
