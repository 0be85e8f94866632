// The check that ranks prepare the same model.
#pragma once

#include <torch/nn/module.h>

#include "tandem/comm/rank_group.h"

namespace tandem {

/// Throws ConfigError on all ranks, the same, when a rank gives no module (`module` is null) or one whose parameters or
/// buffers are not those of rank 0's in number, name, shape and type, or when a trained parameter is rank 0's own.
/// Collective.
void check_same_models(comm::RankGroup& group, int rank, const torch::nn::Module* module);

}  // namespace tandem
