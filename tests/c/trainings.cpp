// A plug-in with a training in C++, which hosts in other languages start by its name.
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "tandem/runtime/trainings.h"

namespace {

// Fits a line; `options` is the number of steps, or empty: until it is stopped.
void fit(tandem::Accelerator& accelerator, const std::string& options) {
  const std::int64_t steps = options.empty() ? std::int64_t{1} << 40 : std::stoll(options);
  torch::nn::Linear net(4, 1);
  torch::optim::SGD sgd(net->parameters(), 0.1);
  auto [model, optimizer] = accelerator.prepare(net, sgd);
  accelerator.set_total_steps(steps);
  for (std::int64_t step = 0; step < steps && !accelerator.stop_requested(); ++step) {
    auto window = accelerator.accumulate(model);
    accelerator.backward((model(at::ones({8, 4})) - 3).square().mean());
    optimizer.step();
    optimizer.zero_grad();
  }
}

}  // namespace

extern "C" void register_trainings() { tandem::register_training("fit", fit); }
