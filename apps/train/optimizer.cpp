#include "optimizer.h"

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

namespace train {

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Options& options, const Net& net) {
  if (options.optimizer == OptimizerKind::sgd)
    return std::make_unique<torch::optim::SGD>(
        net.parameters(),
        torch::optim::SGDOptions(options.lr).momentum(options.momentum).weight_decay(options.weight_decay));
  return std::make_unique<torch::optim::AdamW>(
      net.parameters(), torch::optim::AdamWOptions(options.lr).weight_decay(options.weight_decay));
}

}  // namespace train
