// Whether a training can go on from the checkpoint of --resume, and what lies there where one begins anew.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "inputs.h"
#include "options.h"
#include "training_state.h"

namespace train {

/// How the classes of data differ from those before, for people.
std::string difference(const std::vector<std::string>& before, const std::vector<std::string>& now);

/// What --resume goes on from.
struct FoundCheckpoint {
  std::optional<std::string> path;     ///< empty text: the newest that is not damaged; nothing where `auto` finds none
  std::optional<TrainingState> state;  ///< see state_of_checkpoint
};

/// Looks for it; of several machines the first one does, which alone needs to have it, and tells the others: they all
/// call it, with options that know their place among them. Throws tandem::ConfigError when --resume names no
/// checkpoint.
FoundCheckpoint find_checkpoint(const Options& options);

/// Throws tandem::ConfigError when a path is not there that the checkpoint says, and nobody has given.
void check_is_there(const DataOptions& data);

/// Throws tandem::ConfigError when the data is not what the checkpoint was made with, or its global batch is another.
void check_is_its_own(const TrainingState& checkpoint, const Options& options, const Inputs& inputs);

/// What --checkpoint-dir has of another training, before one begins anew in it, for people; empty: nothing. Throws
/// tandem::ConfigError where --total-limit would remove that.
std::string earlier_checkpoints(const Options& options);

}  // namespace train
