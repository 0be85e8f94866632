#include "optimizer.h"

#include <map>

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "tandem/optim/adafactor.h"
#include "tandem/optim/lion.h"
#include "tandem/optim/muon.h"

namespace train {
namespace {

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
  const double lr = options.lr, decay = options.weight_decay;
  switch (options.optimizer) {
    case OptimizerKind::sgd:
      return std::make_unique<torch::optim::SGD>(
          net.parameters(), torch::optim::SGDOptions(lr).momentum(options.momentum).weight_decay(decay));
    case OptimizerKind::lion:
      return std::make_unique<tandem::optim::Lion>(net.parameters(),
                                                   tandem::optim::LionOptions(lr).weight_decay(decay));
    case OptimizerKind::muon:
      return std::make_unique<tandem::optim::Muon>(
          net.parameters(),
          tandem::optim::MuonOptions(lr).weight_decay(decay).adjust_lr_fn(tandem::optim::MuonRate::match_rms_adamw));
    case OptimizerKind::adafactor:
      return std::make_unique<tandem::optim::Adafactor>(net.parameters(),
                                                        tandem::optim::AdafactorOptions(lr).weight_decay(decay));
    case OptimizerKind::adamw: break;
  }
  return std::make_unique<torch::optim::AdamW>(net.parameters(), torch::optim::AdamWOptions(lr).weight_decay(decay));
}

}  // namespace train
