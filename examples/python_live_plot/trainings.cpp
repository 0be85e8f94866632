// The training that live_plot.py starts: a library that makes it known by its name. Python sees it through tandem/c.h.
#include <cstdint>
#include <string>

#include <tandem/runtime/trainings.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/types.h>

namespace {

// Fits sin(5 x) on [-1, 1] by a small network. `options`: the number of steps.
void fit_sine(tandem::Accelerator& accelerator, const std::string& options) {
  const std::int64_t steps = std::stoll(options);
  torch::nn::Sequential net(torch::nn::Linear(1, 32), torch::nn::Tanh(), torch::nn::Linear(32, 1));
  torch::optim::AdamW adamw(net->parameters(), 5e-3);
  auto [model, optimizer] = accelerator.prepare(net, adamw);
  accelerator.set_total_steps(steps);
  for (std::int64_t step = 0; step < steps && !accelerator.stop_requested(); ++step) {
    auto window = accelerator.accumulate(model);
    const auto x = torch::rand({64, 1}) * 2 - 1;  // other numbers on each rank
    accelerator.backward(torch::mse_loss(model(x), torch::sin(5 * x)));
    optimizer.step();
    optimizer.zero_grad();
  }
}

}  // namespace

extern "C" void register_trainings() { tandem::register_training("fit_sine", fit_sine); }
