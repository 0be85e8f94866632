// The names of classes beside weights: what `tandem predict` needs to know of a training.
#pragma once

#include <map>
#include <string>

#include "options.h"
#include "tandem/tandem.h"
#include "task.h"

namespace train {

/// The model, its classes and what becomes of a picture before it sees it, as JSON; empty for a task without classes.
std::string describe_classes(const Options& options, const Task& task);

/// Metadata of a safetensors file of weights: that they are PyTorch's, the model, and the description, if there is one.
std::map<std::string, std::string> metadata_of_weights(const Options& options, const std::string& description);

/// Writes `description` to classes.json beside `weights`, unless these go to a stream; a problem is a warning, as the
/// weights have it too.
void try_to_write_classes(const tandem::Accelerator& accelerator, const std::string& weights,
                          const std::string& description);

}  // namespace train
