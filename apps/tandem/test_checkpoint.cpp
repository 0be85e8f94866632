#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

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

std::string run(const tandem::LaunchConfig& config) {
  const TemporaryDirectory directory(std::filesystem::temp_directory_path());
  tandem::launch(config, [&](tandem::Accelerator& accelerator) { save_and_load(accelerator, directory / "model"); });
  return "weights saved in several files and loaded";
}

}  // namespace

SelfTestPart test_checkpoint() { return {"checkpoint", run}; }

}  // namespace tandem_tool
