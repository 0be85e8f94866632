// Ranks that train on their own and average their models: Accelerator::local_sgd.
#pragma once

#include <functional>

#include "runtime/divided_updates.h"
#include "runtime/uneven_inputs.h"
#include "tandem/nn/local_sgd.h"

namespace tandem {

/// As Accelerator::local_sgd. Collective.
void train_locally(RankContext& context, TrainingParts& parts, DividedUpdates& updates, const Join& join, int steps,
                   const std::function<void(nn::LocalSgd&)>& body);

}  // namespace tandem
