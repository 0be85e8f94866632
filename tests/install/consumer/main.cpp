#include <cstdio>

#include <tandem/session/session.h>
#include <tandem/version.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

// Trains on two ranks in the background, and shows the weights that the training ends with.
int main() {
  tandem::Session session;
  session.start({.cpu = 2}, [](tandem::Accelerator& accelerator) {
    torch::nn::Linear net(4, 1);
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    for (int step = 0; step < 50; ++step) {
      auto window = accelerator.accumulate(model);
      accelerator.backward((model(torch::ones({8, 4})) - 3).square().mean());
      optimizer.step();
      optimizer.zero_grad();
    }
  });
  session.wait();
  const auto weights = session.snapshot().get().models.at(0);
  const auto sum = weights[0].second.sum() + weights[1].second.sum();
  std::printf("tandem %s trained to %.3f\n", TANDEM_VERSION, sum.item<double>());
  try {
    session.start({.gpus = 1, .cpu = 1}, [](tandem::Accelerator&) {});
    session.wait();
  } catch (const tandem::ConfigError&) {  // the same type here as in the library
    return 0;
  }
  return 1;
}
