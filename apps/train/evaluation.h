#pragma once

#include <optional>

#include "net.h"
#include "options.h"
#include "tandem/tandem.h"
#include "task.h"
#include "tracking.h"

namespace train {

/// How good the trained `model` is: the mean of Task::judge over the test set, of which all ranks together take every
/// sample once; nothing when a stop is asked for. Records with `tracking`, unless that is null, which classes it takes
/// for which. Leaves the model in evaluation mode. Collective.
std::optional<double> evaluate(tandem::Accelerator& accelerator, tandem::nn::Model<Net>& model, const Options& options,
                               const Task& task, Tracking* tracking);

}  // namespace train
