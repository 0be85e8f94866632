// A training with a command line: the flags of a launch, which ./train has too, and two of its own.
//
//     command_line --cpu 2 --seed 7 --mixed-precision bf16 --epochs 20
//
// It learns which points of a square lie in a circle. Needs CLI11.
#include <cstdio>

#include <tandem/launch_flags.h>
#include <tandem/tandem.h>
#include <torch/torch.h>

int main(int argc, char** argv) {
  tandem::LaunchConfig launch{.cpu = 2};  // what counts where no flag says otherwise
  int epochs = 10;
  double lr = 1e-2;
  CLI::App app("Learns which points of a square lie in a circle.");
  tandem::add_launch_flags(app, launch);
  app.add_option("--epochs", epochs, "passes over the points")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--lr", lr, "learning rate")->check(CLI::PositiveNumber)->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  torch::manual_seed(1);
  const auto points = torch::rand({4096, 2}) * 2 - 1;
  const auto inside = points.square().sum(1).lt(0.5).to(torch::kFloat).unsqueeze(1);
  const tandem::data::TensorDataset samples(points, inside);

  try {
    tandem::launch(launch, [&](tandem::Accelerator& accelerator) {
      torch::nn::Sequential net(torch::nn::Linear(2, 32), torch::nn::ReLU(), torch::nn::Linear(32, 1));
      torch::optim::AdamW adamw(net->parameters(), lr);
      tandem::data::DataLoader data(samples, {.batch_size = 64, .shuffle = true});
      auto [model, optimizer, batches] = accelerator.prepare(net, adamw, data);
      for (int epoch = 0; epoch < epochs; ++epoch)
        for (auto& [batch, targets] : batches) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(torch::nn::functional::binary_cross_entropy_with_logits(model(batch), targets));
          optimizer.step();
          optimizer.zero_grad();
        }
      const torch::NoGradGuard no_grad;
      const auto scores = model(points.to(accelerator.device())).cpu();
      const auto loss = torch::nn::functional::binary_cross_entropy_with_logits(scores, inside).item<double>();
      const auto accuracy = (scores > 0).eq(inside > 0).to(torch::kFloat).mean().item<double>();
      accelerator.print(accelerator.world_size(), " ranks, loss ", loss, ", accuracy ", accuracy);
    });
  } catch (const tandem::ConfigError& error) {  // such as more GPUs than there are
    std::fprintf(stderr, "command_line: %s\n", error.what());
    return 2;
  }
}
