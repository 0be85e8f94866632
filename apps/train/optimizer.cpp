#include "optimizer.h"

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

namespace train {
namespace {

template <class Optimizer, class OptimizerOptions>
std::unique_ptr<torch::optim::Optimizer> make(const Options& options, const Net& net, OptimizerOptions defaults) {
  defaults.weight_decay(options.weight_decay);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (auto& [lr_scale, decays, parameters] : group_parameters(net, options.fine_tuning)) {
    auto its = std::make_unique<OptimizerOptions>(defaults);
    its->lr(options.lr * lr_scale);
    if (!decays) its->weight_decay(0.0);
    groups.emplace_back(std::move(parameters), std::move(its));
  }
  return std::make_unique<Optimizer>(std::move(groups), defaults);
}

}  // namespace

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Options& options, const Net& net) {
  if (options.optimizer == OptimizerKind::sgd)
    return make<torch::optim::SGD>(options, net, torch::optim::SGDOptions(options.lr).momentum(options.momentum));
  return make<torch::optim::AdamW>(options, net, torch::optim::AdamWOptions(options.lr));
}

}  // namespace train
