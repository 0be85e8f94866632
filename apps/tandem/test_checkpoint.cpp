#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "self_test.h"
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"
#include "temporary_directory.h"

namespace tandem_tool {
namespace {

namespace nn = torch::nn;

std::vector<at::Tensor> tensors_of(const nn::Sequential& net) {
  std::vector<at::Tensor> tensors = net->parameters();
  for (const auto& buffer : net->buffers()) tensors.push_back(buffer);
  return tensors;
}

// Saves a network in several files, changes it, and loads it.
void save_and_load(tandem::Accelerator& accelerator, const std::string& directory) {
  nn::Sequential net(nn::Linear(64, 256), nn::BatchNorm1d(256), nn::Linear(256, 10));
  auto model = accelerator.prepare(net);
  accelerator.save_model(model, directory, {.max_shard_bytes = 20'000});
  accelerator.wait_for_everyone();  // on CPU ranks the weights may be one memory
  std::vector<at::Tensor> saved;
  for (const at::Tensor& tensor : tensors_of(net)) saved.push_back(tensor.detach().clone());
  accelerator.wait_for_everyone();
  {
    const torch::NoGradGuard no_grad;
    for (at::Tensor& tensor : tensors_of(net)) tensor.zero_();
  }
  accelerator.load_model(model, directory);
  const auto loaded = tensors_of(net);
  for (std::size_t i = 0; i < saved.size(); ++i)
    if (!at::equal(loaded[i].detach(), saved[i]))
      throw tandem::CheckpointError("weights that were saved and loaded are others on rank " +
                                    std::to_string(accelerator.rank()));
}

// Goes on from a saved state: the steps after it must give the same bits again.
void save_and_resume(tandem::Accelerator& accelerator, const std::string& directory) {
  nn::Sequential net(nn::Linear(64, 256), nn::BatchNorm1d(256), nn::Linear(256, 10));
  torch::optim::AdamW adamw(net->parameters(), 0.01);
  auto [model, optimizer] = accelerator.prepare(net, adamw);
  const auto train = [&, &model = model, &optimizer = optimizer] {
    for (int step = 0; step < 3; ++step) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(at::rand({8, 64}, accelerator.device())).square().mean());
      optimizer.step();
      optimizer.zero_grad();
    }
    std::vector<at::Tensor> weights;
    for (const at::Tensor& tensor : tensors_of(net)) weights.push_back(tensor.detach().clone());
    accelerator.wait_for_everyone();  // on CPU ranks the weights may be one memory
    return weights;
  };
  train();
  accelerator.save_state(directory);
  const auto first = train();
  accelerator.load_state(directory);
  const auto again = train();
  for (std::size_t i = 0; i < first.size(); ++i)
    if (!at::equal(first[i], again[i]))
      throw tandem::CheckpointError("a training that went on from a checkpoint has other weights on rank " +
                                    std::to_string(accelerator.rank()));
}

std::string run_checkpoint(const tandem::LaunchConfig& config) {
  const TemporaryDirectory directory(std::filesystem::temp_directory_path());
  tandem::launch(config, [&](tandem::Accelerator& accelerator) { save_and_load(accelerator, directory / "model"); });
  tandem::launch(config, [&](tandem::Accelerator& accelerator) { save_and_resume(accelerator, directory / "state"); });
  return "weights saved in several files and loaded, a training resumed from its state";
}

}  // namespace

SelfTestPart test_checkpoint() { return {"checkpoint", run_checkpoint}; }

}  // namespace tandem_tool
