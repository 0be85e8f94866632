// What of a network is trained, and how fast: --freeze, --lr-scale and --decay-norms.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "net.h"

namespace CLI {
class App;
}  // namespace CLI

namespace train {

/// A PATTERN means parameters by their names: those of a module, as layer1 or layer1.0.conv1, or one parameter; `*` and
/// `?` stand for any characters, also dots; "head" is the module that makes the scores, "backbone" all the others.
struct FineTuning {
  std::string weights_prefix;         ///< of the names in --init-weights that are taken; empty: all
  std::vector<std::string> freeze;    ///< PATTERN
  std::vector<std::string> lr_scale;  ///< PATTERN=FACTOR
  bool decay_norms = false;           ///< weight decay on biases and norms too
};

/// Adds these flags.
void add_fine_tuning_flags(CLI::App& app, FineTuning& options);

/// Has the parameters of `net` that --freeze means need no gradient, so that neither optimizer nor reducer knows them.
/// Throws tandem::ConfigError when a pattern means none, or nothing is left to train.
void freeze(Net& net, const FineTuning& options);

/// Parameters that are updated alike.
struct ParameterGroup {
  double lr_scale = 1.0;
  bool decays = true;  ///< whether it has the weight decay
  std::vector<at::Tensor> parameters;
};

/// Those of `net` that are not frozen, in groups: those with the plain learning rate first. Throws tandem::ConfigError
/// when a pattern of --lr-scale means none of them.
std::vector<ParameterGroup> group_parameters(const Net& net, const FineTuning& options);

}  // namespace train
