#include <ATen/Functions.h>

#include "plan.h"
#include "self_test.h"
#include "tandem/core/error.h"
#include "tandem/data/tensor_dataset.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"

namespace tandem_tool {
namespace {

using Samples = std::vector<std::vector<std::int64_t>>;  // by step

constexpr std::int64_t kLength = 1003, kBatchSize = 4;
constexpr int kEpochs = 2;

void check_mode(tandem::LaunchConfig config, bool dispatch) {
  const int ranks = tandem::examine(config).world_size();
  const PlanResult plan = run_plan({.length = kLength,
                                    .batch_size = kBatchSize,
                                    .ranks = ranks,
                                    .dispatch = dispatch,
                                    .shuffle = true,
                                    .seed = config.seed,
                                    .epochs = kEpochs});
  config.data_loader.dispatch_batches = dispatch;
  tandem::launch(config, [&](tandem::Accelerator& accelerator) {
    const tandem::data::TensorDataset dataset(at::arange(kLength, at::kLong));
    auto loader = accelerator.prepare(
        tandem::data::DataLoader(dataset, {.batch_size = kBatchSize, .shuffle = true, .workers = 2}));
    for (int epoch = 0; epoch < kEpochs; ++epoch) {
      Samples steps;
      for (auto& batch : loader) {
        const at::Tensor samples = batch.cpu();
        const auto* values = samples.template const_data_ptr<std::int64_t>();
        steps.emplace_back(values, values + samples.numel());
      }
      const auto& planned = plan.epochs[static_cast<std::size_t>(epoch)].ranks;
      if (steps != planned[static_cast<std::size_t>(accelerator.rank())])
        throw tandem::DataError(std::string(dispatch ? "dispatch" : "shard") + " mode: epoch " + std::to_string(epoch) +
                                " on rank " + std::to_string(accelerator.rank()) + " has other samples than the plan");
    }
  });
}

std::string run_dispatch(const tandem::LaunchConfig& config) {
  check_mode(config, false);
  check_mode(config, true);
  return "the plan's samples in shard and dispatch mode, " + std::to_string(kEpochs) + " epochs of " +
         std::to_string(kLength);
}

}  // namespace

SelfTestPart test_dispatch() { return {"dispatch", run_dispatch}; }

}  // namespace tandem_tool
