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

/// The checkpoint that --resume names; empty text: the newest that is not damaged; nothing where `auto` finds none.
/// Throws tandem::ConfigError when it is no checkpoint.
std::optional<std::string> checkpoint_to_resume(const Options& options);

/// What --resume goes on from.
struct FoundCheckpoint {
  std::optional<std::string> path;     ///< see checkpoint_to_resume
  std::optional<TrainingState> state;  ///< see state_of_checkpoint
};

/// What the first of several machines finds, which alone needs to have the checkpoint: it tells the others. They all
/// call it, with options that know their place among them.
FoundCheckpoint find_on_first_node(const Options& options);

/// Throws tandem::ConfigError when a path is not there that the checkpoint says, and nobody has given.
void check_is_there(const DataOptions& data);

/// Throws tandem::ConfigError when the data is not what the checkpoint was made with, or its global batch is another.
void check_is_its_own(const TrainingState& checkpoint, const Options& options, const Inputs& inputs);

/// What --checkpoint-dir has of another training, before one begins anew in it, for people; empty: nothing. Throws
/// tandem::ConfigError where --total-limit would remove that.
std::string earlier_checkpoints(const Options& options);

}  // namespace train
