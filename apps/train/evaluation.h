#pragma once

#include <optional>
#include <vector>

#include "net.h"
#include "options.h"
#include "tandem/tandem.h"
#include "task.h"
#include "tracking.h"

namespace train {

/// How good the trained `model` is: the means of Task::judge's figures over the test set, of which all ranks together
/// take every sample once; nothing when a stop is asked for. They depend neither on the number of ranks nor on what
/// else is in a sample's batch. Records with `tracking`, unless that is null, which classes it takes for which. Leaves
/// the model in evaluation mode. Collective.
std::optional<std::vector<double>> evaluate(tandem::Accelerator& accelerator, tandem::nn::Model<Net>& model,
                                            const Options& options, const Task& task, Tracking* tracking);

/// The verdict on a network that was not judged: its figures are NaN.
Verdict not_judged(const Task& task);

}  // namespace train
