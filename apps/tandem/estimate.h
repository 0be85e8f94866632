#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tandem/nn/precision.h"
#include "tandem/runtime/launch_config.h"

namespace tandem_tool {

enum class Update { sgd, momentum, adam, adamw };

/// A training whose memory is asked for. Sizes in bytes.
struct Training {
  double weights = 0;           ///< of one copy, in float32
  double training_sample = 0;   ///< activations of a sample of the batch, on one rank; 0: not known
  double evaluation_batch = 0;  ///< activations of a batch of the evaluation, on one rank
  double data = 0;              ///< of what all ranks read
  std::int64_t batch = 64;      ///< samples, of a rank
  int ranks = 1;
  bool gpu = false;
  Update update = Update::adamw;
  tandem::Precision precision = tandem::Precision::no;
  tandem::Sharding sharding = tandem::Sharding::automatic;
};

/// What holds a part of the memory: weights, gradients, activations.
struct MemoryPart {
  std::string name;
  double peak;   ///< bytes, at the moment when all parts together are the most
  double later;  ///< bytes, after the first two steps
};

/// Of the process with CPU ranks; of each GPU, whose ranks have all for themselves, with GPU ranks.
std::vector<MemoryPart> estimate(const Training& training);

double peak_of(const std::vector<MemoryPart>& parts);
double later_of(const std::vector<MemoryPart>& parts);

}  // namespace tandem_tool
