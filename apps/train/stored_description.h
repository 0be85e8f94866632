// What the training that made weights said of them: its model and the names of its classes.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace train {

/// Where weights say what they are of.
struct StoredDescription {
  std::string file;   ///< that says it
  std::string model;  ///< as --model has it; empty: it is not said
  std::string text;   ///< what describe_classes said; empty: the network is not one of classes
};

/// What the weights at `path` say: those in a safetensors file in its metadata, a checkpoint in its state; otherwise
/// classes.json in the directory, or beside the file. Nothing where nobody says anything, as of weights from elsewhere
/// and of older versions. Throws tandem::CheckpointError where a file cannot be read.
std::optional<StoredDescription> find_description(const std::string& path);

/// Names of the classes that the weights at `path` have scores for; none for a network that is not one of classes.
/// Nothing where that is not known, or cannot be read.
std::optional<std::vector<std::string>> stored_classes(const std::string& path);

/// Throws tandem::ConfigError where `path`, which `flag` names as weights or a checkpoint, is a folder of checkpoints.
void check_is_one_checkpoint(const std::string& flag, const std::string& path);

}  // namespace train
