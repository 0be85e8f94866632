#include "optim/momentum.h"

#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include "tandem/optim/lion.h"
#include "tandem/optim/muon.h"

namespace tandem::optim {
namespace {

template <class Options>
bool set_plain(torch::optim::OptimizerOptions& options, double momentum) {
  auto* known = dynamic_cast<Options*>(&options);
  if (known) known->momentum(momentum);
  return known;
}

template <class Options>
bool set_first_beta(torch::optim::OptimizerOptions& options, double momentum) {
  auto* known = dynamic_cast<Options*>(&options);
  if (known) std::get<0>(known->betas()) = momentum;
  return known;
}

}  // namespace

bool set_momentum(torch::optim::OptimizerOptions& options, double momentum) {
  using namespace torch::optim;
  return set_plain<SGDOptions>(options, momentum) || set_plain<RMSpropOptions>(options, momentum) ||
         set_plain<MuonOptions>(options, momentum) || set_first_beta<AdamOptions>(options, momentum) ||
         set_first_beta<AdamWOptions>(options, momentum) || set_first_beta<LionOptions>(options, momentum);
}

}  // namespace tandem::optim
