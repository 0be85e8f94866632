#include "optimizer.h"

#include <map>

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "tandem/optim/adafactor.h"
#include "tandem/optim/lion.h"
#include "tandem/optim/muon.h"

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

const std::map<std::string, OptimizerDefaults> kOptimizers{{"sgd", {OptimizerKind::sgd, 0.05, 0.0}},
                                                           {"adamw", {OptimizerKind::adamw, 1e-3, 0.01}},
                                                           {"lion", {OptimizerKind::lion, 1e-4, 0.1}},
                                                           {"muon", {OptimizerKind::muon, 1e-3, 0.1}},
                                                           {"adafactor", {OptimizerKind::adafactor, 1e-2, 0.0}}};

}  // namespace

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const auto& [name, its] : kOptimizers) names.push_back(name);
  return names;
}

OptimizerDefaults defaults_of_optimizer(const std::string& name) { return kOptimizers.at(name); }

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Options& options, const Net& net) {
  const double lr = options.lr;
  switch (options.optimizer) {
    case OptimizerKind::sgd:
      return make<torch::optim::SGD>(options, net, torch::optim::SGDOptions(lr).momentum(options.momentum));
    case OptimizerKind::lion: return make<tandem::optim::Lion>(options, net, tandem::optim::LionOptions(lr));
    case OptimizerKind::muon:
      return make<tandem::optim::Muon>(
          options, net, tandem::optim::MuonOptions(lr).adjust_lr_fn(tandem::optim::MuonRate::match_rms_adamw));
    case OptimizerKind::adafactor:
      return make<tandem::optim::Adafactor>(options, net, tandem::optim::AdafactorOptions(lr));
    case OptimizerKind::adamw: break;
  }
  return make<torch::optim::AdamW>(options, net, torch::optim::AdamWOptions(lr));
}

}  // namespace train
