#pragma once

#include <stop_token>
#include <string>
#include <vector>

#include "train/options.h"

namespace measure {

struct StepSetup {
  train::ModelKind model = train::ModelKind::mlp;  ///< or cnn
  int ranks = 1;                                   ///< on the CPU, 1 intra-op thread each
  int steps = 100;                                 ///< that are timed
  std::stop_token cancel{};
};

struct StepFigures {
  std::vector<double> bare, tandem, ratios;  ///< seconds a step; their ratio, by pair
  double difference = 0;                     ///< largest, of the weights that both end with
};

/// A training step with Tandem, on batches of 64 of MNIST, and one of a bare LibTorch loop on hand-written threads with
/// the same data, arithmetic and number of threads; `pairs` short runs of each, in turn. Throws tandem::Error.
StepFigures time_steps(const StepSetup& setup, const std::string& data_dir, int pairs);

}  // namespace measure
