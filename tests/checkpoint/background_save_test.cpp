// Saves beside a training, and what the program adds to a state.
#include <filesystem>
#include <thread>

#include <torch/optim/lbfgs.h>

#include "checkpoint/state_training.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::test::states;
namespace fs = std::filesystem;

TEST_CASE("a training saves while another one in the same process trains") {
  const TempDir dir;
  const auto run = [&](const std::string& name, std::uint64_t seed) {
    std::vector<at::Tensor> weights;
    LaunchConfig config;
    config.seed = seed;
    config.checkpoints.directory = dir / name;
    run_ranks(2, config, [&](Accelerator& accelerator) {
      torch::nn::Linear net(3, 2);
      torch::optim::AdamW inner(net->parameters(), 0.1);
      auto [model, optimizer] = accelerator.prepare(net, inner);
      for (int i = 0; i < 30; ++i) {
        accelerator.backward(model(at::rand({1, 3})).square().sum());
        optimizer.step();
        optimizer.zero_grad();
        accelerator.save_state({}, {.background = i % 2 == 0});
      }
      if (accelerator.is_main()) weights.push_back(net->weight.detach().clone());
    });
    return weights;
  };
  const auto alone = run("alone", 1);
  std::vector<at::Tensor> beside;
  std::thread other([&] { run("other", 2); });
  beside = run("beside", 1);
  other.join();
  CHECK(same_bits(alone, beside));
  for (const char* name : {"alone", "other", "beside"}) {
    const auto all = io::list_checkpoints(dir / name);
    CHECK(all.size() == 30);
    for (const auto& path : all) io::CheckpointReader(path).verify();
  }
}

TEST_CASE("a save in the background has the state of its moment, and one that comes too soon can be left out") {
  const TempDir dir;
  const auto weights = on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    std::vector<at::Tensor> saved;
    for (int i = 0; i < 20; ++i) {
      small.train(accelerator, 3);
      saved.push_back(small.net->weight.detach().clone());
      const auto path = accelerator.save_state(
          dir / std::to_string(i), {.background = true, .when_busy = i % 2 ? WhenBusy::skip : WhenBusy::wait});
      if (path.empty()) saved.back() = at::Tensor();
    }
    return saved;
  });
  int left_out = 0;
  for (int i = 0; i < 20; ++i) {
    const at::Tensor& expected = weights[0][static_cast<std::size_t>(i)];
    left_out += expected.defined() ? 0 : 1;
    REQUIRE(fs::exists(dir / std::to_string(i)) == expected.defined());
    if (!expected.defined()) continue;
    torch::nn::Linear net(3, 2);
    io::load_model(*net, dir / std::to_string(i));
    CHECK(at::equal(net->weight, expected));
  }
  CHECK(left_out <= 10);
}

TEST_CASE("hooks add files and get them back, optimizers of other classes keep their own format") {
  const TempDir dir;
  std::vector<StateFiles> got(2);
  const auto body = [&](Accelerator& accelerator, bool load) {
    torch::nn::Linear net(2, 1);
    torch::optim::LBFGS inner(net->parameters());
    auto [model, optimizer] = accelerator.prepare(net, inner);
    auto& mine = got[static_cast<std::size_t>(accelerator.rank())];
    const StateFiles files{{"camera.json", "{}"}, {"empty", ""}};
    accelerator.register_state_hooks(
        {.save = [files] { return files; }, .load = [&mine](const StateFiles& loaded) { mine = loaded; }});
    if (load)
      accelerator.load_state(dir / "state");
    else
      accelerator.save_state(dir / "state");
  };
  run_ranks(2, [&](Accelerator& accelerator) { body(accelerator, false); });
  run_ranks(2, [&](Accelerator& accelerator) { body(accelerator, true); });
  for (const auto& files : got) CHECK(files == StateFiles{{"camera.json", "{}"}, {"empty", ""}});
}
