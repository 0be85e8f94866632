#pragma once

#include <torch/nn/module.h>

#include "comm/rank_group.h"
#include "tandem/nn/named_tensors.h"

namespace tandem::nn {

/// The parameters of `module`, tied ones once, under their first name: LibTorch lists them as often as they are
/// registered.
NamedTensors parameters_once(const torch::nn::Module& module);

/// The buffers of `module`, each once, under its first name.
NamedTensors buffers_once(const torch::nn::Module& module);

/// Throws ConfigError on all ranks, the same, when a rank gives no module (`module` is null) or one whose parameters or
/// buffers are not those of rank 0's in number, name, shape and type, or when a trained parameter is rank 0's own.
/// Collective.
void check_same_models(comm::RankGroup& group, int rank, const torch::nn::Module* module);

}  // namespace tandem::nn
