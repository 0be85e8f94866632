#pragma once

#include <string>

#include <torch/optim/optimizer.h>

#include "comm/rank_group.h"

namespace tandem::nn {
class ReducerGroup;
}

namespace tandem::optim {

/// The name of a parameter in the prepared model that has it; empty for none.
std::string name_of(const at::Tensor& parameter, const nn::ReducerGroup& models);

/// What is said of a parameter whose values are not rank 0's.
std::string describe_other_weights(const std::string& name, int rank);

/// Throws ConfigError on all ranks, the same, when the optimizer of a rank is of another class than rank 0's, or lists
/// other parameters, or in another order. Collective.
void check_same_optimizers(comm::RankGroup& group, int rank, const torch::optim::Optimizer& optimizer,
                           const nn::ReducerGroup& models);

}  // namespace tandem::optim
